"""A module of ours as a process of its own, wherever the caller stands.

`python -m` puts the folder that one stands in first on the path of imports: in a folder of somebody else's (a downloaded checkpoint, say)
a `torch.py` would be run. The flag against it, -P, came with Python 3.11.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_RUN = "import sys; sys.path.remove(''); import runpy; runpy.run_module({!r}, run_name='__main__', alter_sys=True)"


def command(module: str, *arguments: str, python: str | None = None) -> list[str]:
    """What `subprocess` is given to run `module` (`vla.evaluate.worker`); `python`: another interpreter. Wants `environment`."""
    return [python or sys.executable, "-c", _RUN.format(module), *arguments]


def environment(**more: str) -> dict[str, str]:
    """This process's, in which the package that is running here is found first."""
    here = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, **more}
