from __future__ import annotations

import pytest
import torch

from tests.latent_action.dots import CONFIG, write_dots
from vla.latent_action.train import frame_pairs, train_latent


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def dots(tmp_path_factory):
    """Folder of a labelled dataset and of one without labels."""
    root = tmp_path_factory.mktemp("dots")
    return write_dots(root / "labelled"), write_dots(root / "video", labelled=False)


@pytest.fixture(scope="session")
def trained(dots, tmp_path_factory):
    """(model, its run's folder): trained on the video alone."""
    out = tmp_path_factory.mktemp("run")
    torch.set_num_threads(1)
    return train_latent(CONFIG, frame_pairs(CONFIG, [dots[1]]).samples, steps=150, batch=32, out=out), out
