"""How long `vla --help` takes, from a new process to its end; the promise is under 0.3 s.

python benchmarks/help_time.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

RUNS = 20
LIMIT_S = 0.3


def main() -> int:
    """Prints a line; exit code 1 where the median is over the limit."""
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "vla", "--help"], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    median_s, worst_s = statistics.median(seconds), max(seconds)
    print(f"vla --help: median {median_s:.3f} s, slowest of {RUNS} {worst_s:.3f} s, limit {LIMIT_S} s")
    return int(median_s > LIMIT_S)


if __name__ == "__main__":
    sys.exit(main())
