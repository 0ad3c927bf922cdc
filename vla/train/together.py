"""Where one rank of a job ends, all end, and each says why: who failed and with what, who was killed, who hangs.

A rank that fails leaves its reason on the job's key-value store before it goes. A rank whose collective breaks, or runs out of time,
looks there: reasons are the answer; a rank that left none within `GRACE_S` was killed, or hangs. A rank that hangs cannot look, so
a timer of its own, armed at each step, prints where it hangs and ends it.
"""

from __future__ import annotations

import faulthandler
import itertools
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from vla.errors import UserError
from vla.train.ranks import Left, Ranks

GRACE_S = 5.0
"""How long a rank's reason is waited for."""
_TURNS = itertools.count()
"""Runs of this process, one after another; the same on all ranks."""


@contextmanager
def together(ranks: Ranks, timeout_s: float) -> Iterator[None]:
    """Inside, the failure of any rank ends all: its own with its own error, the others with a UserError that names it."""
    if not faulthandler.is_enabled() and _has_stderr():
        faulthandler.enable()  # a crash in native code shows where
    if ranks.world == 1:
        yield
        return
    board = _Board(ranks, timeout_s)
    try:
        yield
    except (Left, RuntimeError) as error:
        if not isinstance(error, Left) and not _broken(error):
            board.leave(f"{type(error).__name__}: {error}", 1)
            raise
        board.leave("", 1)
        raise board.reason(error) from None  # its own traceback says no more than that a connection ended
    except BaseException as error:
        line = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        board.leave(line, getattr(error, "exit_code", 1), stays=isinstance(error, Exception))  # who is interrupted leaves at once
        raise
    finally:
        faulthandler.cancel_dump_traceback_later()


def alive(ranks: Ranks, timeout_s: float) -> None:
    """Called at each step: a process that does not come by again is ended, with the place where it hangs. After the others gave up."""
    if ranks.world > 1 and _has_stderr():
        faulthandler.dump_traceback_later(timeout_s + 2 * GRACE_S, exit=True)


class _Board:
    """What ranks leave behind, on the store by which they met."""

    def __init__(self, ranks: Ranks, timeout_s: float) -> None:
        self.ranks, self.timeout_s, self.turn = ranks, timeout_s, next(_TURNS)
        self.store: Any = dist.distributed_c10d._get_default_store()
        self.store.set(self._key("who", ranks.rank), f"process {os.getpid()} on {socket.gethostname()}")

    def leave(self, line: str, exit_code: int, stays: bool = True) -> None:
        """`line`: why, or '' where it is another's failure that shows. The first rank keeps the store: it stays until all have looked."""
        try:
            self.store.set(self._key("left", self.ranks.rank), json.dumps({"line": line, "exit_code": exit_code}))
            if self.ranks.first and line and stays and self._left(1.0) != self.ranks.world:
                dist.destroy_process_group()  # the others wait for this rank: their collectives end now
                self._left(GRACE_S)
        except RuntimeError:  # the store is gone, with the first rank
            return

    def reason(self, error: Exception) -> UserError:
        """Why this rank cannot go on, by what the others left."""
        try:
            self._left(GRACE_S)
            left = {rank: self._read("left", rank) for rank in range(self.ranks.world)}
            who = {rank: self._read("who", rank) for rank in range(self.ranks.world)}
        except RuntimeError:
            return _failure("rank 0 is gone, and with it what the ranks know of each other: killed, or crashed. Its own output says more.")
        said = {rank: json.loads(text) for rank, text in left.items() if text}
        for rank, row in said.items():
            if row["line"]:
                return _failure(f"rank {rank} could not go on: {row['line']}", row["exit_code"])
        silent = [f"rank {rank} ({who[rank] or 'never seen'})" for rank in left if rank not in said]
        if silent:
            text = f"{', '.join(silent)} is gone, or has said nothing for {self.timeout_s:.0f} s: killed, crashed, or hung"
            return _failure(f"{text}. Its own output says more.")
        return _failure(f"the ranks lost each other, and none knows why: {error}")

    def _left(self, most_s: float) -> int:
        """Waits until all have left, at most so long: how many have."""
        until = time.monotonic() + most_s
        while True:
            count = sum(self.store.check([self._key("left", rank)]) for rank in range(self.ranks.world))
            if count == self.ranks.world or time.monotonic() > until:
                return count
            time.sleep(0.05)

    def _read(self, kind: str, rank: int) -> str:
        key = self._key(kind, rank)
        return self.store.get(key).decode() if self.store.check([key]) else ""

    def _key(self, kind: str, rank: int) -> str:
        return f"vla/{self.turn}/{kind}/{rank}"


def _failure(text: str, exit_code: int = 1) -> UserError:
    error = UserError(text)
    error.exit_code = exit_code
    return error


def _broken(error: RuntimeError) -> bool:
    """Whether this is a collective that ended because of another rank. gloo's errors have no type of their own."""
    return isinstance(error, dist.DistError) or any(name in str(error) for name in ("gloo", "NCCL", "Connection closed by peer"))


def _has_stderr() -> bool:
    try:
        return sys.stderr is not None and sys.stderr.fileno() >= 0
    except (OSError, ValueError):  # a notebook's, or a test's
        return False
