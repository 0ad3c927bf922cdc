"""Before a run on many machines: do they see one folder, the same versions, the same time, and how fast do they add up gradients?

Every rank calls `examine`; the first gets one line for each question. What would spoil a run is said with the ranks that it concerns.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import socket
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from vla.errors import UserError
from vla.train.ranks import Ranks

MOST_SKEW_S = 5.0
"""Between clocks. Nothing here depends on them, but logs and files of several machines are read side by side."""
LEAST_GB_PER_S = 1.0
"""Of an all-reduce between GPUs; below it a step of a large model is mostly waiting."""


@dataclass(frozen=True)
class Finding:
    """An answer. `good`: whether a run can count on it; `fix` is empty where it can."""

    name: str
    good: bool
    detail: str
    fix: str = ""


def examine(folder: Path, megabytes: int = 256) -> list[Finding]:
    """Collective. Answers on the first rank, [] on the others. UserError without a launcher, whose environment says who is there."""
    ranks = Ranks.join(timeout_s=120.0)
    if ranks.world == 1:
        raise UserError(
            "--nodes examines the ranks of a launcher: torchrun --nnodes ... -m vla doctor --nodes (or srun, as in slurm.sbatch)"
        )
    facts = _gathered(ranks, {"host": socket.gethostname(), "time": _now(ranks), **_versions()}, "facts")
    shared = _shared(ranks, folder)
    seconds = _all_reduce_s(ranks, megabytes)
    if not ranks.first:
        return []
    return [_who(facts), _same(facts), _clocks(facts), shared, _speed(ranks, megabytes, seconds)]


def _versions() -> dict[str, str]:
    from vla import __version__

    nccl = ".".join(map(str, torch.cuda.nccl.version())) if torch.cuda.is_available() else "none"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {"python": platform.python_version(), "torch": torch.__version__, "vla": __version__, "nccl": nccl, "device": device}


def _now(ranks: Ranks) -> float:
    """This rank's clock at one moment, to the length of a barrier."""
    for _ in range(2):  # the first one connects
        ranks.sum(torch.zeros(1, device=ranks.device)).item()
    return time.time()


def _gathered(ranks: Ranks, fact: Any, what: str) -> list[Any]:
    """Every rank's, as JSON through the key-value store: nothing is unpickled."""
    store: Any = dist.distributed_c10d._get_default_store()
    store.set(f"vla/nodes/{what}/{ranks.rank}", json.dumps(fact))
    return [json.loads(store.get(f"vla/nodes/{what}/{rank}")) for rank in range(ranks.world)]


def _meet(ranks: Ranks) -> None:
    """Returns when every rank has come here."""
    ranks.sum(torch.zeros(1, device=ranks.device)).item()


def _who(facts: list[dict[str, Any]]) -> Finding:
    hosts = Counter(fact["host"] for fact in facts)
    return Finding("ranks", True, f"{len(facts)} on {len(hosts)} hosts: " + ", ".join(f"{host} {n}" for host, n in hosts.items()))


def _same(facts: list[dict[str, Any]]) -> Finding:
    names = ("python", "torch", "vla", "nccl", "device")
    odd = []
    for name in names:
        usual = Counter(fact[name] for fact in facts).most_common(1)[0][0]
        odd += [
            f"rank {rank} on {fact['host']} has {name} {fact[name]}, not {usual}" for rank, fact in enumerate(facts) if fact[name] != usual
        ]
    said = ", ".join(f"{name} {facts[0][name]}" for name in names)
    return Finding("versions", not odd, "; ".join(odd) or said, "install the same on every host (constraints.txt)" if odd else "")


def _clocks(facts: list[dict[str, Any]]) -> Finding:
    skews = [fact["time"] - facts[0]["time"] for fact in facts]
    worst = max(range(len(skews)), key=lambda rank: abs(skews[rank]))
    detail = f"at most {abs(skews[worst]):.2f} s apart"
    if abs(skews[worst]) <= MOST_SKEW_S:
        return Finding("clocks", True, detail)
    return Finding(
        "clocks", False, f"rank {worst} on {facts[worst]['host']} is {skews[worst]:+.1f} s off", "let chrony or ntpd set the clocks"
    )


def _shared(ranks: Ranks, folder: Path) -> Finding:
    """Each rank writes a word there; all must find all of them."""
    word = str(ranks.first_does(lambda: secrets.token_hex(8)))
    mine = folder / f".vla-nodes-{word}-{ranks.rank}"
    failure, missing = "", []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mine.write_text(word)
    except OSError as error:
        failure = f"{error.strerror}"
    _meet(ranks)  # all have written
    for rank in range(ranks.world):
        until = time.monotonic() + 5  # a network file system may show a new file late
        while not (there := (folder / f".vla-nodes-{word}-{rank}").is_file()) and time.monotonic() < until and not failure:
            os.listdir(folder)
            time.sleep(0.1)
        missing += [] if there else [rank]
    _meet(ranks)  # all have looked
    if not failure:
        mine.unlink(missing_ok=True)
    bad = []
    for rank, (failed, unseen) in enumerate(_gathered(ranks, [failure, missing], "shared")):
        if unseen:
            bad.append(f"rank {rank} {f'cannot write there ({failed})' if failed else f'does not see what ranks {unseen} wrote'}")
    fix = "give --path a folder that every host mounts at the same place; --out and the data must lie there"
    return Finding("folder", not bad, f"{folder}: {'; '.join(bad) or 'every rank sees what the others write'}", fix if bad else "")


def _all_reduce_s(ranks: Ranks, megabytes: int, times: int = 5) -> float:
    """Seconds of the fastest of some all-reduces of so much."""
    data = torch.ones(megabytes * 250_000, device=ranks.device)
    best = float("inf")
    for _ in range(times):
        _meet(ranks)
        began = time.perf_counter()
        ranks.sum(data)
        data[:1].item()
        best = min(best, time.perf_counter() - began)
        data.fill_(1)
    return best


def _speed(ranks: Ranks, megabytes: int, seconds: float) -> Finding:
    # What each rank's link carries: of a ring, 2 (n - 1) / n times the data.
    rate = megabytes / 1e3 * 2 * (ranks.world - 1) / ranks.world / seconds
    billion_s = 4e3 / megabytes * seconds
    detail = f"{rate:.2f} GB/s a rank ({megabytes} MB in {1e3 * seconds:.0f} ms); a billion fp32 gradients take {billion_s:.1f} s"
    slow = ranks.device.type == "cuda" and rate < LEAST_GB_PER_S
    fix = "see that NCCL uses the fast network (NCCL_DEBUG=INFO, NCCL_SOCKET_IFNAME, NCCL_IB_HCA)" if slow else ""
    return Finding("all-reduce", not slow, detail, fix)
