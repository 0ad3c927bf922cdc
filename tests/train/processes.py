"""Real processes that die for tests, forked from one that has imported everything: a second each instead of ten.

As a program it reads one JSON object a line, {"scenario", "world", "args"}, forks `world` processes that run the scenario as ranks
of one job, and answers with their exit codes (negative: the signal).
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEEPSPEED = ("deepspeed", "torch._inductor.compile_fx", "deepspeed.runtime.zero.muon.muon_optimizer")
"""What `deepspeed.initialize` imports when it is called, seven seconds' worth."""


class Warm:
    """`run` starts a scenario of `tests.train.scenarios` and waits for it."""

    def __init__(self, process: subprocess.Popen) -> None:
        self._process = process

    def run(self, scenario: str, world: int = 1, **args) -> list[int]:
        """Exit codes, by rank."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"scenario": scenario, "world": world, "args": args}, default=str) + "\n")
        self._process.stdin.flush()
        while not (line := self._process.stdout.readline()).startswith("exits "):
            assert line, "the warm process has died; its error is above"
        return json.loads(line.removeprefix("exits "))


@contextmanager
def warm(*modules: str) -> Iterator[Warm]:
    """A warm process that has imported `modules` beside what every scenario needs."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", "tests.train.processes", *modules]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Warm(process)
    finally:
        assert process.stdin
        process.stdin.close()
        process.wait(300)  # a crowded machine takes its time to free what was imported


def _serve() -> None:
    from tests.train import scenarios

    fork = multiprocessing.get_context("fork")
    for line in sys.stdin:
        asked = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        work = getattr(scenarios, asked["scenario"])
        ranks = [fork.Process(target=_rank, args=(work, asked["args"], rank, asked["world"], port)) for rank in range(asked["world"])]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        print(f"exits {json.dumps([rank.exitcode for rank in ranks])}", flush=True)


def _rank(work: Callable[..., int | None], args: dict, rank: int, world: int, port: int) -> None:
    os.dup2(2, 1)  # standard output belongs to the answers
    launcher = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in launcher.items()})
    sys.exit(work(**args) or 0)


if __name__ == "__main__":
    for name in ("vla.train.loop", "torch._dynamo", "PIL.ImageDraw", "rich.console", *sys.argv[1:]):
        importlib.import_module(name)
    _serve()
