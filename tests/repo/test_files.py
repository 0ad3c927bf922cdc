"""What must hold for every file that is handed on: no private paths, no addresses of registries, no large or stray files."""

from __future__ import annotations

import re

import pytest

from tests.repo.tracked import ROOT, tracked

# A path of one person's machine; `https://host/work/...` is none, nor is `~/` or a variable before the slash.
PRIVATE = re.compile(r"""(?<![\w.~})\]*-])/(?:home|Users|root|work|mnt|scratch)/[\w.-]+""")
BINARY_LIMIT_BYTES = 16 * 10**6


def test_no_file_names_a_private_path():
    found = []
    for path in tracked():
        text = (ROOT / path).read_bytes().decode("utf-8", "ignore")
        found += [f"{path}:{number}: {line.strip()[:100]}" for number, line in enumerate(text.splitlines(), 1) if PRIVATE.search(line)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("text", "private"),
    [
        ("'/ho" + "me/ann/data'", True),
        ("open(/wo" + "rk/main/x)", True),
        ("/Us" + "ers/ann", True),
        ("https://example.org/work/x", False),
        ("~/work/x", False),
        ("${HOME}/work/x", False),
        ("data/work/x", False),
    ],
)
def test_the_pattern_tells_private_paths(text, private):
    assert bool(PRIVATE.search(text)) == private


def test_no_file_is_larger_than_a_checkpoint_may_be():
    assert not [str(path) for path in tracked() if (ROOT / path).stat().st_size > BINARY_LIMIT_BYTES]


def test_nothing_that_runs_produce_is_tracked():
    assert not [str(path) for path in tracked() if path.parts[0] in {"runs", "data", ".venv", "build", "dist"}]
