"""Blanks: what a generated file leaves to people, because nothing in the data says it and a guess would move a motor.

In Python `blank("unit of 'arm': rad or m")` stands where the value goes, in YAML the text `??? unit of 'arm'`. Loading such a file is
refused with all the lines that are left.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from vla.errors import UserError

MARK = "???"
"""What a blank in YAML begins with."""


def blank(what: str) -> NoReturn:
    """Raises UserError, naming every blank of the file that calls it and its line."""
    path = Path(sys._getframe(1).f_code.co_filename)
    left = [f"line {line}: {text}" for line, text in _calls(path)] if path.is_file() else [what]
    raise UserError(_refusal(path, left))


def refuse_blanks(data: Any, where: str) -> None:
    """Raises UserError where plain data, as YAML gives it, still has blanks; each with its place."""
    left = [f"{place}: {text}" for place, text in _marked(data, "")]
    if left:
        raise UserError(_refusal(where, left))


def _refusal(where: object, left: list[str]) -> str:
    count = f"{len(left)} blank{'s' * (len(left) > 1)}"
    return f"{where} has {count} to fill in, which nothing but you can know: {'; '.join(left)}"


def _calls(path: Path) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "blank" and node.args:
            text = node.args[0].value if isinstance(node.args[0], ast.Constant) else ast.unparse(node.args[0])
            found.append((node.lineno, str(text)))
    return sorted(found)


def _marked(data: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from _marked(value, f"{place}.{key}" if place else str(key))
    elif isinstance(data, list):
        for number, value in enumerate(data, 1):
            yield from _marked(value, f"{place}[{number}]")
    elif isinstance(data, str) and data.startswith(MARK):
        yield place, data.removeprefix(MARK).strip()
