"""The log's way to tensorboard."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.train.toy import toy_run
from vla.errors import UnknownName, UserError
from vla.train.loop import train
from vla.train.optim import Constant


@pytest.mark.slow
def test_tensorboard_brings_no_tensorflow_into_a_run(tmp_path):
    # Where TensorFlow is installed (for RLDS), tensorboard would import it: 20 s, and a crash beside Mesa.
    code = (
        "import sys\nfrom vla.train.log import _summary_writer\n"
        f"board = _summary_writer()({str(tmp_path)!r})\nboard.add_scalar('loss', 1.0, 1)\nboard.close()\n"
        "print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
    assert list(tmp_path.glob("events.*"))


class Service:
    """Stands in for wandb and trackio, with the arguments that theirs take (0.31 and 0.43)."""

    def __init__(self):
        self.begun, self.rows, self.finished = [], [], 0

    def init(self, project, name=None, config=None, resume="never", dir=None, id=None):
        self.begun.append((project, name, config["steps"], resume, id))
        return self

    def log(self, data, step=None):
        assert all(isinstance(value, float) for value in data.values())
        self.rows.append((step, data))

    def finish(self):
        self.finished += 1


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_service_that_follows_a_run_gets_every_number(shards, tmp_path, monkeypatch, name):
    service = Service()
    monkeypatch.setitem(sys.modules, name, service)
    for steps in (3, 6):
        run = toy_run(trackers=(name,), steps=steps, schedule=Constant())
        train(run, tmp_path / "run", data_root=shards, near=shards, resume=True, allow_changed=True)
    first, second = service.begun
    assert first[:2] == ("toy", "run") and first[3] == "allow" and first[4] == second[4]  # the second goes on with the first
    assert [step for step, data in service.rows if "train/loss" in data] == [1, 2, 3, 4, 5, 6]
    assert "train/sources/a" in service.rows[0][1] and any("validation/loss" in data for _, data in service.rows)
    assert service.finished == 2


def test_a_service_that_is_not_there_or_not_known_is_refused(shards, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(UserError, match="pip install wandb"):
        train(toy_run(trackers=("wandb",)), tmp_path / "run", data_root=shards, near=shards)
    with pytest.raises(UnknownName, match="wandb, trackio|trackio, wandb"):
        toy_run(trackers=("wandbb",))
