"""The errors a user can cause. Each message names what is wrong, what there is, and the fix."""

from __future__ import annotations

from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave us. The command line prints it as one line and exits with `exit_code`."""

    exit_code = 2


class UnknownName(UserError):
    """A task, robot, suite, kind or file that does not exist; the message lists the choices."""

    def __init__(self, what: str, name: object, choices: Iterable[object], fix: str = "") -> None:
        listed = ", ".join(sorted(map(str, choices))) or "none"
        super().__init__(f"unknown {what} '{name}'. Choices: {listed}.{' ' + fix if fix else ''}")


class SchemaError(UserError):
    """Data whose keys, shapes, types or units are not what its schema or embodiment says."""


class StatsMissing(UserError):
    """No statistics for a robot; there is no default for numbers that move a motor."""


class Damaged(UserError):
    """A shard or checkpoint whose bytes are not those its manifest vouches for."""

    exit_code = 1


class UnsafeChange(UserError):
    """A resumed run that differs from the one on disk in a way that would silently change its result."""
