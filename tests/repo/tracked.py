"""The files of the repository as git knows them: tracked ones, and new ones that it does not ignore."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ("vla", "client", "pretrain", "finetune", "benchmarks", "data_mixtures", "checkpoints")
"""Folders whose code users run; tests and documentation are not among them."""


def tracked(*suffixes: str, under: tuple[str, ...] = ()) -> list[Path]:
    """Paths relative to ROOT with one of the suffixes (all without any), in these top folders (all without any)."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = sorted({Path(name) for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()})
    return [p for p in paths if (not suffixes or p.suffix in suffixes) and (not under or p.parts[0] in under)]
