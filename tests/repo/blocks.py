"""Code blocks of the documentation, and what it takes for each to be true.

bash      every command is checked: `vla` lines by the real argument parser, `make` lines by `make -n`, scripts and files of the
          repository by being there, other programs by being installed. ```` ```bash run ```` blocks are really run.
python    all blocks of a page are executed in order, as one program, in an empty folder.
yaml, toml, json are parsed. `text` is for output and drawings. Any other language, or none, is an error.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.repo.tracked import ROOT, tracked
from vla import cli
from vla.errors import UserError
from vla.train.run import load_recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FENCE = re.compile(r"^(?P<indent> *)(?P<fence>```+)(?P<info>.*)$")
OPERATORS = {"&&", "||", "|", ";", "&"}
REDIRECTIONS = {">", ">>", "<", "2>", ">&", "&>"}
BUILTINS = {"cd", "export", "source", "."}
ELSEWHERE = {"apt-get", "docker", "nvidia-smi", "sbatch", "sky", "srun", "sudo", "uv"}
"""Programs that documentation may name although not every machine has them."""
LAUNCHERS = {"torchrun", "deepspeed", "accelerate"}


@dataclass(frozen=True)
class Block:
    """One fenced block: `line` is where its text starts, counted from 1."""

    path: Path
    line: int
    language: str
    options: tuple[str, ...]
    text: str


def blocks(path: Path, text: str) -> list[Block]:
    """The fenced blocks of a Markdown text; raises ValueError for one that does not end."""
    found: list[Block] = []
    opened: re.Match[str] | None = None
    lines: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        match = FENCE.match(line)
        if opened is None and match:
            opened, start, lines = match, number + 1, []
        elif opened is not None and match and match["fence"] == opened["fence"] and not match["info"].strip():
            language, *options = opened["info"].split() or [""]
            found.append(Block(path, start, language, tuple(options), "\n".join(lines) + "\n"))
            opened = None
        elif opened is not None:
            lines.append(line.removeprefix(opened["indent"]))
    if opened is not None:
        raise ValueError(f"{path}:{start - 1}: the block does not end")
    return found


def mistakes(page: list[Block], folder: Path) -> list[str]:
    """What is wrong in the blocks of one page, one line each. `folder`: empty, to run in."""
    found = []
    made: set[str] = set()  # files that `cp` on this page has made
    for block in page:
        if block.language == "bash":
            for number, command in _commands(block):
                made |= {command[-1]} if command[0] == "cp" else set()
                wrong = _in_command(command, made)
                found += [f"{block.path}:{number}: {wrong}"] if wrong else []
            if "run" in block.options and not found:
                found += _run(["bash", "-eu", "-c", block.text], block, folder)
        elif block.language in _PARSERS:
            try:
                _PARSERS[block.language](block.text)
            except (ValueError, yaml.YAMLError) as error:
                found.append(f"{block.path}:{block.line}: no {block.language}: {error}")
        elif block.language not in ("python", "text"):
            found.append(f"{block.path}:{block.line}: blocks are bash, python, yaml, toml, json or text, not '{block.language}'")
    python = [block for block in page if block.language == "python"]
    return found + (_python(python, folder) if python else [])


_PARSERS = {"yaml": yaml.safe_load, "toml": tomllib.loads, "json": json.loads}


def _python(page: list[Block], folder: Path) -> list[str]:
    # Empty lines in between give each line the number it has on the page, so that a traceback points there.
    program: list[str] = []
    for block in page:
        program += [""] * (block.line - 1 - len(program)) + block.text.splitlines()
    script, log = folder / f"{page[0].path.stem}.py", folder / ".log"
    script.write_text("\n".join(program) + "\n")
    # A process of its own, forked from one that has imported what most pages need: importing torch costs more than the pages.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["torch", "vla.policy", "vla.presets"])
    child = processes.Process(target=run_page, args=(script, folder, log))
    child.start()
    child.join()
    return [f"{page[0].path}:{page[0].line}: failed\n{log.read_text()}"] if child.exitcode else []


def run_page(script: Path, folder: Path, log: Path) -> None:
    """Runs a page's blocks as `python script` in `folder` would, with what they print and their traceback in `log`."""
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    sys.argv = [str(script)]
    runpy.run_path(str(script), run_name="__main__")


def _run(command: list[str], block: Block, folder: Path) -> list[str]:
    programs = folder / ".programs"  # `vla` and `python` are those of this checkout, installed or not
    programs.mkdir(exist_ok=True)
    for name, line in {"vla": f'exec {sys.executable} -m vla "$@"', "python": f'exec {sys.executable} "$@"'}.items():
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'client'}",
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return [f"{block.path}:{block.line}: failed\n{done.stderr}"] if done.returncode else []


def _commands(block: Block) -> list[tuple[int, list[str]]]:
    """(line, words) of each simple command: continuations joined, comments, assignments in front and redirections gone."""
    found = []
    start, text = block.line, ""
    for number, line in enumerate(block.text.splitlines(), block.line):
        start = start if text else number
        text += line
        if text.endswith("\\"):
            text = text[:-1] + " "
            continue
        lexer = shlex.shlex(text, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split, lexer.commenters, text = True, "#", ""
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word not in OPERATORS:
                words.append(word)
                continue
            found.append((start, _bare(words)))
            words = []
    return [(number, words) for number, words in found if words]


def _bare(words: list[str]) -> list[str]:
    kept: list[str] = []
    skip = False
    for word in words:
        if word in REDIRECTIONS:
            skip = True
        elif skip or (not kept and re.fullmatch(r"[A-Za-z_]\w*=.*", word)):
            skip = False
        else:
            kept.append(word)
    return kept


def _in_command(words: list[str], made: set[str]) -> str:
    """What is wrong with a simple command, or ''."""
    program, *rest = words
    missing = [word for word in words if _is_ours(word) and word not in made and not (ROOT / word).exists()]
    recipes = [word for word in words if re.fullmatch(r"(pretrain|finetune)/\w+\.py(:\w+)?", word) and word not in made]
    if missing := [word for word in missing if word not in recipes]:
        return f"there is no {missing[0]}"
    for recipe in recipes:
        try:
            load_recipe(ROOT / recipe)  # FILE.py:NAME: the variant has to be in it
        except UserError as error:
            return str(error)
    if program == "vla":
        return _in_vla(rest)
    if program == "make":
        done = subprocess.run(["make", "--dry-run", *rest], cwd=ROOT, capture_output=True, text=True)
        return done.stderr.strip()
    if re.fullmatch(r"(\.venv/bin/)?python3?", program) or program in LAUNCHERS:
        return _in_python(rest)
    if program in BUILTINS | ELSEWHERE or _is_ours(program):
        return ""
    beside = str(Path(sys.executable).parent)
    return "" if shutil.which(program) or shutil.which(program, path=beside) else f"no program {program}"


def _in_vla(words: list[str]) -> str:
    try:
        cli.parse(words)
    except UserError as error:
        return str(error)
    except SystemExit as end:  # --help and --version print and leave
        return f"`vla {' '.join(words)}` exits with {end.code}" if end.code else ""
    return ""


def _in_python(words: list[str]) -> str:
    if "-m" not in words:
        return ""  # a script is a file of the repository, or one that the reader writes
    module, *rest = words[words.index("-m") + 1 :]
    if module == "vla":
        return _in_vla(rest)
    return "" if importlib.util.find_spec(module) else f"no module {module}"


def _is_ours(word: str) -> bool:
    """Whether a word is a path that starts in a folder of the repository, and so has to be there."""
    return "/" in word and word.split("/")[0] in {path.parts[0] for path in tracked() if len(path.parts) > 1}
