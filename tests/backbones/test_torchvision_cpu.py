"""torchvision beside a CPU-only torch: what the project needs of it works."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from vla.torchvision_cpu import prepare_torchvision


def test_transforms_work():
    held = prepare_torchvision()
    from torchvision.transforms import v2

    image = torch.arange(3 * 8 * 8, dtype=torch.uint8).view(3, 8, 8)
    assert v2.Resize((4, 4), antialias=True)(image).shape == (3, 4, 4)
    assert prepare_torchvision() is held  # it must stay alive
    assert torch.version.cuda is None or held is None


@pytest.mark.slow
@pytest.mark.skipif(torch.version.cuda is not None, reason="is about a torch without CUDA")
def test_without_it_the_import_fails():
    """The day this fails, the file can go."""
    done = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "operator torchvision::nms does not exist" in done.stderr
