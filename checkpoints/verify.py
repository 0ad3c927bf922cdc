"""Are the shipped checkpoints what index.toml says, byte for byte, and do they act here as they did when they were exported?

python checkpoints/verify.py                                  all of them; exit 0 where all is well, 1 where something is not
python checkpoints/verify.py demo                             one, by name
python checkpoints/verify.py --row exports/demo pretrain/demo.py data_mixtures/demo.yaml      the row of a new one, to be pasted
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vla.audit import check_checkpoint
from vla.checkpoint import read_contents, sha256
from vla.errors import SchemaError, UnknownName, UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


@dataclass(frozen=True)
class Row:
    """`folder`: under this one. `recipe`: `FILE.py` or `FILE.py:VARIANT`; it, `mixture` and `scores` are paths from the repository's root.

    `scores`: results of `vla eval --json`. `why`: what it is for.
    """

    name: str
    folder: str
    manifest_sha256: str
    recipe: str
    mixture: str
    licence: str
    why: str
    scores: tuple[str, ...] = ()


def rows(path: Path = HERE / "index.toml") -> list[Row]:
    """The rows of an index. SchemaError, with its place, for a key that is missing, unknown or of another type."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise SchemaError(f"{path} is no TOML: {error}") from error
    if set(data) - {"checkpoint"}:
        raise SchemaError(f"{path}: only [[checkpoint]] may stand here, not {sorted(set(data) - {'checkpoint'})}")
    found = [_row(row, f"{path}: checkpoint {number}") for number, row in enumerate(data.get("checkpoint", []), 1)]
    names = [row.name for row in found]
    if len(set(names)) != len(names):
        raise SchemaError(f"{path}: a name stands there twice: {sorted(name for name in set(names) if names.count(name) > 1)}")
    return found


def problems(row: Row, here: Path = HERE, root: Path = ROOT, act: bool = True) -> list[str]:
    """What is wrong with a checkpoint or what its row names; empty where all is well. `act`: also compare its golden actions."""
    folder = here / row.folder
    if not (folder / "manifest.json").is_file():
        return [f"{row.name}: there is no checkpoint at {folder}"]
    found = [
        f"{row.name}: {what} {path} is not there"
        for what, path in (("recipe", row.recipe.partition(".py:")[0].removesuffix(".py") + ".py"), ("mixture", row.mixture))
        if not (root / path).is_file()
    ]
    found += [f"{row.name}: scores {path} are not there" for path in row.scores if not (root / path).is_file()]
    if not (folder / "README.md").is_file():
        found.append(f"{row.name}: it has no card; `vla export checkpoint` writes one")
    if sha256(folder / "manifest.json") != row.manifest_sha256:
        found.append(f"{row.name}: its manifest is not the one that index.toml names")
    report = check_checkpoint(folder, verify=act)
    return found + [f"{row.name}: {finding}" for finding in report.of("error")]


def row_text(folder: Path, recipe: str, mixture: str) -> str:
    """A row for index.toml; what only its maker knows is left to be filled in."""
    contents = read_contents(folder)
    facts = {
        "name": str(contents.run.get("name", folder.name)),
        "folder": folder.name,
        "manifest_sha256": sha256(folder / "manifest.json"),
        "recipe": recipe,
        "mixture": mixture,
        "licence": "???",
        "why": "???",
    }
    return "\n".join(["[[checkpoint]]", *(f'{key} = "{value}"' for key, value in facts.items())])


def _row(data: Mapping[str, Any], where: str) -> Row:
    known = {f.name: f for f in fields(Row)}
    if unknown := sorted(set(data) - set(known)):
        raise UnknownName("key", unknown[0], known, f"It stands in {where}.")
    if missing := [name for name in known if name not in data and name != "scores"]:
        raise SchemaError(f"{where}: the key '{missing[0]}' is missing")
    values = {**data, "scores": tuple(data.get("scores", ()))}
    texts = {key: value for key, value in values.items() if key != "scores"}
    wrong = [key for key, value in texts.items() if not isinstance(value, str) or not value or value.startswith("???")]
    if wrong:
        raise SchemaError(f"{where}: '{wrong[0]}' must be text that says something, not {values[wrong[0]]!r}")
    if not re.fullmatch(r"[0-9a-f]{64}", values["manifest_sha256"]) or Path(values["folder"]).name != values["folder"]:
        raise SchemaError(f"{where}: manifest_sha256 takes 64 hexadecimal digits, and folder the name of one beside index.toml")
    return Row(**values)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 where every checkpoint that was asked for is as it should be, 1 where one is not, 2 for a mistake."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of checkpoints in index.toml (default: all)")
    parser.add_argument("--row", nargs=3, metavar=("FOLDER", "RECIPE", "MIXTURE"), help="print the row of a new one")
    args = parser.parse_args(argv)
    try:
        if args.row:
            print(row_text(Path(args.row[0]), *args.row[1:]))
            return 0
        known = {row.name: row for row in rows()}
        for name in args.names:
            if name not in known:
                raise UnknownName("checkpoint", name, known)
        found = {name: problems(known[name]) for name in args.names or known}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for name, lines in found.items():
        print("\n".join(lines) if lines else f"{name}: as it should be")
    print(f"{len(found)} checkpoints, {sum(map(bool, found.values()))} with problems")
    return 1 if any(found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
