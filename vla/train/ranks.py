"""The processes of one job. A launcher (torchrun, deepspeed, Slurm) says who they are through RANK, WORLD_SIZE, LOCAL_RANK."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vla.errors import UserError

TIMEOUT_S = 600.0
"""A rank that says nothing for so long is taken for dead, and the others end with an error that names it."""


class Left(UserError):
    """Another rank has left. `vla.train.together` asks which one, and why."""


@dataclass(frozen=True)
class Ranks:
    """This process's place: `rank` of `world`, and the device it computes on."""

    rank: int
    world: int
    device: torch.device

    @staticmethod
    def join(timeout_s: float = TIMEOUT_S) -> Ranks:
        """Reads the launcher's environment; with more than one rank, meets the others, who wait for each other for `timeout_s`."""
        rank, world, local = Ranks.number(), Ranks.world_size(), _number("LOCAL_RANK", 0)
        device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        ranks = Ranks(rank, world, device)
        if world > 1 and not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
            ranks._part()  # the first, through which all meet, may leave at once over a mistake in the recipe
        return ranks

    @staticmethod
    def number() -> int:
        """Which rank the launcher says this process is."""
        return _number("RANK", 0)

    @staticmethod
    def world_size() -> int:
        """How many ranks the launcher says there are."""
        return _number("WORLD_SIZE", 1)

    @property
    def first(self) -> bool:
        """Whether this rank writes files and speaks."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Summed over ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def all_do(self, work: Callable[[], Any]) -> Any:
        """Every rank works; where one fails, all raise, so that none waits for one that has left."""
        answer, failure = None, None
        try:
            answer = work()
        except UserError as error:
            failure = error
        failed = self.sum(torch.tensor(float(failure is not None), device=self.device))
        if failed > 0:
            self._part()
        if failure is not None:
            raise failure
        if failed > 0:
            raise Left("another rank could not start; its error says why")
        return answer

    def first_does(self, work: Callable[[], Any]) -> Any:
        """Rank 0 works; all get its (JSON-able) answer, or raise its UserError, so that none waits for one that has left."""
        if self.world == 1:
            return work()
        answer: dict[str, Any] = {}
        failure: UserError | None = None
        if self.first:
            try:
                answer = {"value": work()}
            except UserError as error:
                failure, answer = error, {"error": str(error), "exit_code": error.exit_code}
        answer = json.loads(self._broadcast(json.dumps(answer)))
        if "error" not in answer:
            return answer["value"]
        self._part()
        if failure is None:
            failure = UserError(answer["error"])
            failure.exit_code = answer["exit_code"]
        raise failure

    def _part(self) -> None:
        """Before ranks may leave: each has come so far. A process that ends can take with it what it sent last; from here on that is
        nothing."""
        with suppress(RuntimeError):
            self.sum(torch.zeros((), device=self.device))

    def _broadcast(self, text: str) -> str:
        data = torch.tensor(list(text.encode()), dtype=torch.uint8, device=self.device)
        size = torch.tensor(len(data), device=self.device)
        dist.broadcast(size, 0)
        data = data if self.first else torch.empty(int(size), dtype=torch.uint8, device=self.device)
        dist.broadcast(data, 0)
        return bytes(data.tolist()).decode()


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise UserError(f"the launcher set {name}={text!r}; it must be a number")
    return int(text)
