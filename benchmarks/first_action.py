"""From nothing to the first action: a new process that imports, loads a checkpoint of the repository, checks its bytes, and acts.

    python -m benchmarks.first_action --json
    python -m benchmarks.first_action --checkpoint runs/mine --runs 3

Each run is a process of its own, timed from outside: Python's start and every import are in it. The first is not counted: it may be the one
that reads the libraries from the disk, and is given beside the others.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.command import ROOT, machine, parser_of

ACT = """
import sys
from vla.golden import image_side, observation
from vla.policy import Policy

policy = Policy.load(sys.argv[1])
robot = policy.contents.embodiments[0]
chunk = policy.act(observation(policy.contents, robot, 1, image_side(policy.contents)))
assert chunk.action_TA.shape == (robot.horizon, robot.command.size)
"""


def measure(checkpoint: Path, runs: int) -> dict[str, Any]:
    """Seconds from the start of a process to its end, an action made."""
    seconds = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", ACT, str(checkpoint.resolve())], check=True, cwd=ROOT)
        seconds.append(round(time.perf_counter() - started, 3))
    cold, *warm = seconds
    found = {"first_action_s": statistics.median(warm), "slowest_s": max(warm), "before_anything_was_read_s": cold, "runs": warm}
    return found | {"machine": machine()}


def main() -> None:
    """Prints one JSON object, or a line."""
    parser = parser_of(__doc__)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "checkpoints" / "arms-small")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    found = measure(args.checkpoint, args.runs)
    line = "first action after {first_action_s:.2f} s (median), {slowest_s:.2f} s (slowest), {before_anything_was_read_s:.2f} s (first run)"
    print(json.dumps(found) if args.json else line.format(**found))


if __name__ == "__main__":
    main()
