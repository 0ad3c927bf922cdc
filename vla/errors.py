"""The errors a user can cause. Each message names what is wrong, what there is, and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MANY = 20
"""More choices than this, and the nearest ones come first."""


class UserError(ValueError):
    """A mistake in what the user gave us. The command line prints it as one line and exits with `exit_code`."""

    exit_code = 2


class UnknownName(UserError):
    """A task, robot, suite, kind or file that does not exist; the message lists the choices."""

    def __init__(self, what: str, name: object, choices: Iterable[object], fix: str = "") -> None:
        known = sorted(map(str, choices))
        listed, end = f"Choices: {', '.join(known) or 'none'}.", f" {fix}" if fix else ""
        if len(known) > MANY:  # a wall of names would hide the ones that were meant, and the fix
            near = ", ".join(difflib.get_close_matches(str(name), known, n=5, cutoff=0.4))
            super().__init__(f"unknown {what} '{name}'.{f' Nearest: {near}.' if near else ''}{end} {listed}")
        else:
            super().__init__(f"unknown {what} '{name}'. {listed}{end}")


class SchemaError(UserError):
    """Data whose keys, shapes, types or units are not what its schema or embodiment says."""


class StatsMissing(UserError):
    """No statistics for a robot; there is no default for numbers that move a motor."""


class Damaged(UserError):
    """A shard or checkpoint whose bytes are not those its manifest vouches for."""

    exit_code = 1


class UnsafeChange(UserError):
    """A resumed run that differs from the one on disk in a way that would silently change its result."""
