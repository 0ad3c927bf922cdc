"""Every code block of every page is true; and the check that says so sees what is false."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.repo.blocks import blocks, mistakes
from tests.repo.tracked import ROOT, tracked

PAGES = [path for path in tracked(".md") if "```" in (ROOT / path).read_text()]
QUICK = (Path("README.md"), Path("docs/index.md"))
"""What a newcomer types first; the other pages are thorough tests."""


@pytest.mark.parametrize("path", [path if path in QUICK else pytest.param(path, marks=pytest.mark.thorough) for path in PAGES], ids=str)
def test_the_blocks_of_a_page_are_true(path, tmp_path):
    found = mistakes(blocks(path, (ROOT / path).read_text()), tmp_path)
    assert not found, "\n" + "\n".join(found)


LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")


def test_links_within_the_repository_lead_somewhere():
    found = []
    for path in tracked(".md"):
        targets = LINK.findall((ROOT / path).read_text())
        found += [f"{path}: {target}" for target in targets if not (ROOT / path.parent / target).exists()]
    assert not found


def test_the_readme_is_at_most_200_lines():
    readme = ROOT / "README.md"
    assert not readme.exists() or len(readme.read_text().splitlines()) <= 200


def page(text: str, folder: Path) -> str:
    return "\n".join(mistakes(blocks(Path("page.md"), text), folder))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```bash\nvla doctor --jsno\n```", "page.md:2: vla doctor: unrecognized arguments: --jsno"),
        ("```bash\nvla docter\n```", "unknown command 'docter'"),
        ("```bash\n\n# first\nA=1 vla doctor \\\n  --jsno > x.json\n```", "page.md:4: vla doctor: unrecognized"),
        ("```bash\ncd x && vla doctor --jsno | head\n```", "unrecognized arguments: --jsno"),
        ("```bash\npython -m vla doctor --jsno\n```", "unrecognized arguments: --jsno"),
        ("```bash\ntorchrun --nproc-per-node 2 -m vla doctor --jsno\n```", "unrecognized arguments: --jsno"),
        ("```bash\npython -m no_such_module\n```", "no module no_such_module"),
        ("```bash\nmake demmo\n```", "demmo"),
        ("```bash\npython tests/no_such_file.py\n```", "there is no tests/no_such_file.py"),
        ("```bash\nno-such-program --now\n```", "no program no-such-program"),
        ("```bash run\necho good\nfalse\n```", "failed"),
        ("```python\nx = 1\n```\n\ntext\n\n```python\nassert x == 2\n```", 'page.py", line 8'),
        ("```yaml\na: [1\n```", "no yaml"),
        ("```toml\na = \n```", "no toml"),
        ("```json\n{'a': 1}\n```", "no json"),
        ("```\nvla doctor\n```", "not ''"),
        ("```ruby\nputs 1\n```", "not 'ruby'"),
        ("1. item\n   ```bash\n   vla docter\n   ```", "page.md:3: unknown command 'docter'"),
    ],
)
def test_what_is_false_is_seen(text, expected, tmp_path):
    assert expected in page(text, tmp_path)


def test_what_is_true_passes(tmp_path):
    text = (
        "```bash\nvla doctor --json > machine.json  # a comment\nmake demo DECODER=dit\nmake test ARGS='-k x'\nvla --help\n"
        "python tests/conftest.py && cd vla\nsudo apt-get install -y libegl1\n```\n"
        "```bash run\nvla --version > version.txt\npython -c 'import vla, vla_client'\n```\n"
        "```python\nx = 1\n```\n```python\nimport vla\nassert x == 1\n```\n"
        "```yaml\na: 1\n```\n```toml\na = 1\n```\n```json\n[1]\n```\n```text\nanything\n```\n"
        "````text\n```ruby\n```\n````\n"
    )
    assert page(text, tmp_path) == ""
    assert (tmp_path / "version.txt").read_text().startswith("vla ")


def test_a_block_that_does_not_end_is_an_error():
    with pytest.raises(ValueError, match=r"page\.md:2: the block does not end"):
        blocks(Path("page.md"), "text\n```bash\nvla doctor\n")
