"""The log's way to tensorboard."""

from __future__ import annotations

import subprocess
import sys

import pytest


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
