"""`.pt` files as safetensors: read in a process of its own, with torch's own restricted unpickler, and written tensor by tensor.

`python -m vla.interop.torch_file SRC.pt OUT.safetensors ...`. Nested dictionaries become dotted names; what is no tensor is left out.
A pickle is a program; `weights_only` runs none of it but the building of tensors, and had holes before torch 2.10 (CVE-2025-32434).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vla.child import command, environment
from vla.errors import UserError

OLDEST_TORCH = (2, 10)
NOT_READ, READING = 3, "reading "
"""Exit code of a refusal of ours, in one line on stderr; and what stands there before the name of each file."""


def to_safetensors(files: Mapping[Path, Path]) -> None:
    """Converts {source: out} in one other process. Raises UserError: torch is too old, or a file holds more than tensors."""
    pairs = [str(path) for pair in files.items() for path in pair]
    done = subprocess.run(command("vla.interop.torch_file", *pairs), env=environment(), capture_output=True, text=True)
    if not done.returncode:
        return
    lines = done.stderr.strip().splitlines()
    name = next((line.removeprefix(READING) for line in reversed(lines) if line.startswith(READING)), "")
    if done.returncode == NOT_READ:
        raise UserError(f"{name} was not read: {lines[-1]}")
    if done.returncode < 0:
        raise UserError(f"{name} was not read: the process that did was ended by signal {-done.returncode} (memory?)")
    # The unpickler's own error, whose type only pickle has.
    raise UserError(f"{name} was not read: it holds more than tensors, or is damaged; weights alone are read")


def main(*paths: str) -> int:
    """Exit code 0, or NOT_READ with the reason as the last line on stderr."""
    for source, out in zip(paths[::2], paths[1::2], strict=True):
        sys.stderr.write(f"{READING}{Path(source).name}\n")
        problem = _convert(Path(source), Path(out))
        if problem:
            sys.stderr.write(f"{problem}\n")
            return NOT_READ
    return 0


def _convert(source: Path, out: Path) -> str:
    """Why it was not done, or ''."""
    import torch

    from vla.interop.tensors import write_tensors

    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < OLDEST_TORCH:
        least = ".".join(map(str, OLDEST_TORCH))
        return f".pt files are read with torch {least} or newer, this is {torch.__version__}: pip install -U torch"
    tensors = dict(_flat("", torch.load(source, map_location="cpu", weights_only=True, mmap=True)))
    if not tensors:
        return "it holds no tensors"
    write_tensors(out, {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}, tensors.__getitem__)
    return ""


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    import torch

    if isinstance(value, torch.Tensor):
        yield prefix, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), item)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
