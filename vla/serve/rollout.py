"""Reading what a server recorded: the requests of one session, and which commands were carried out when."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vla.embodiment import Embodiment
from vla.errors import Damaged, UserError
from vla.serve.record import FORMAT_VERSION

ABOUT = "rollout.json"


@dataclass(frozen=True)
class Request:
    """One answer. `at_s`: when its observation was made. `executed`: what the robot says it carried out before it, (n, A), or None.
    `frames`: role -> JPEG file."""

    at_s: float
    instruction: str
    state_P: np.ndarray
    action_TA: np.ndarray
    executed: np.ndarray | None
    policy_s: float
    total_s: float
    frames: Mapping[str, Path]


@dataclass(frozen=True)
class Rollout:
    """One session, times from its first observation on."""

    name: str
    policy: str
    robot: Embodiment
    requests: tuple[Request, ...]

    @staticmethod
    def read(folder: Path) -> Rollout:
        """Raises UserError for what is no recording, Damaged for one that cannot be understood."""
        if not is_rollout(folder):
            raise UserError(f"{folder} holds no rollout; `vla serve --record` writes them")
        try:
            about = json.loads((folder / ABOUT).read_text())
            if about["format_version"] != FORMAT_VERSION:
                raise UserError(f"rollout format {about['format_version']}; this version reads {FORMAT_VERSION}")
            robot = Embodiment.from_json(about["embodiment"])
            rows = [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]
            first_s = rows[0]["at_s"] if rows else 0.0
            requests = tuple(_request(folder, row, robot, first_s) for row in rows)
        except FileNotFoundError as error:
            raise UserError(f"{folder}: nothing was answered in this session") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise Damaged(f"{folder}: the recording is damaged: {type(error).__name__}") from error
        if not requests:
            raise UserError(f"{folder}: nothing was answered in this session")
        return Rollout(folder.name, str(about["policy"]), robot, requests)

    def executed(self) -> tuple[list[tuple[np.ndarray, np.ndarray]], bool]:
        """Pieces of (times_N, command_NA), and whether the robot said so itself; else each chunk is taken to run until the next."""
        period_s = 1 / float(self.robot.rate_hz)
        said = any(request.executed is not None for request in self.requests)
        pieces = []
        for number, request in enumerate(self.requests):
            if said and request.executed is not None and len(request.executed):
                rows = request.executed
                pieces.append((request.at_s - period_s * np.arange(len(rows), 0, -1), rows))
            elif not said:
                until_s = self.requests[number + 1].at_s if number + 1 < len(self.requests) else np.inf
                times = request.at_s + period_s * np.arange(len(request.action_TA))
                pieces.append((times[times < until_s], request.action_TA[times < until_s]))
        return pieces, said


def is_rollout(folder: Path) -> bool:
    """Whether `vla serve --record` has written a session there."""
    return (folder / ABOUT).is_file()


def rollouts(folder: Path) -> list[Path]:
    """The sessions that lie at a path: itself, or those in it."""
    return [folder] if is_rollout(folder) else sorted(path.parent for path in folder.glob(f"session-*/{ABOUT}"))


def _request(folder: Path, row: Mapping, robot: Embodiment, first_s: float) -> Request:
    action_TA = np.array(row["actions"], dtype=np.float64)
    robot.command.check(action_TA, "recorded chunk")
    executed = None if row["executed"] is None else np.array(row["executed"], dtype=np.float64).reshape(-1, robot.command.size)
    frames = {str(role): folder / Path(str(name)).name for role, name in row["frames"].items()}  # a name leads nowhere else
    return Request(
        float(row["at_s"]) - first_s,
        str(row["instruction"]),
        np.array(row["state"], dtype=np.float64),
        action_TA,
        executed,
        float(row["policy_s"]),
        float(row["total_s"]),
        frames,
    )
