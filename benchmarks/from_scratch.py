"""From nothing to a result: the commands of a recipe, one after another, and the minutes that each took by the clock.

    python -m benchmarks.from_scratch pretrain/mt10.py --json > benchmarks/results/mt10.json

The commands are the lines under `Command` in the recipe's docstring, run where you stand; the last is a `vla eval ... --json FILE`, whose
result is printed with `wall_s` in it. Seconds are kept in FILE.seconds.json: stopped and called again, it goes on with the command that was
running (with --resume, or as evaluations do by themselves), adds to its seconds, and leaves out what is done. A command that saves and ends
because its time is over (`timeout 540 vla train ...`) is run again until it is done.
"""

from __future__ import annotations

import ast
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.command import parser_of
from vla.errors import UserError

STOPPED_AND_SAVED = (75, 124)
"""Exit codes of `vla train` told to stop, and of `timeout` that told it."""


def commands(recipe: Path) -> list[list[str]]:
    """The words of each command in a recipe's docstring. UserError for one without, or whose last makes no result."""
    text = ast.get_docstring(ast.parse(recipe.read_text(encoding="utf-8"))) or ""
    _, found, after = text.partition("\nCommand")
    lines = [] if not found else [after.splitlines()[0]]
    for line in after.splitlines()[1:]:
        if not line.startswith(" "):  # the next heading
            break
        lines.append(line)
    told = [shlex.split(line.partition("  (")[0]) for line in lines if line.strip()]
    if not told or "--json" not in told[-1]:
        raise UserError(f"{recipe}: no commands under `Command` in its docstring, the last of them `vla eval ... --json FILE`")
    return told


def named(words: list[str]) -> str:
    """`collect`, `train`, `eval`: the word after the program `vla`."""
    return words[words.index("vla") + 1]


def run(words: list[str]) -> None:
    """To its end, however often it stops and saves. Its output goes to standard error. SystemExit where it fails."""
    own: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if word == "torchrun":
            own += [sys.executable, "-m", "torch.distributed.run"]
        elif word == "vla" and before != "-m":
            own += [sys.executable, "-m", "vla"]
        else:
            own.append(word)
    while (code := subprocess.run(own, stdout=sys.stderr).returncode) in STOPPED_AND_SAVED:
        if "--resume" not in own:
            own.append("--resume")
    if code:
        sys.exit(f"error: exit code {code} of: {shlex.join(words)}")


def run_all(told: list[list[str]]) -> dict[str, float]:
    """Name of each command -> its seconds, of all the times that it was begun."""
    kept = Path(told[-1][told[-1].index("--json") + 1] + ".seconds.json")
    kept.parent.mkdir(parents=True, exist_ok=True)
    state = json.loads(kept.read_text()) if kept.is_file() else {"seconds": {}, "done": []}
    for words in told:
        name, began = named(words), time.monotonic()
        if name in state["done"]:
            print(f"{name}: done before, in {state['seconds'][name]:.0f} s", file=sys.stderr)
            continue
        goes_on = name in state["seconds"] and name != "eval" and "--resume" not in words
        state["seconds"].setdefault(name, 0.0)
        try:
            print(f"$ {shlex.join(words)}", file=sys.stderr, flush=True)
            kept.write_text(json.dumps(state))
            run([*words, "--resume"] if goes_on else words)
            state["done"].append(name)
        finally:
            state["seconds"][name] += time.monotonic() - began
            kept.write_text(json.dumps(state))
    return state["seconds"]


def main() -> None:
    """Runs a recipe's commands, and prints the evaluation with the minutes, or all of it as JSON."""
    parser = parser_of(__doc__)
    parser.add_argument("recipe", type=Path, help="such as pretrain/mt10.py")
    args = parser.parse_args()
    try:
        told = commands(args.recipe)
    except UserError as error:
        sys.exit(f"error: {error}")
    seconds = {name: round(each, 1) for name, each in run_all(told).items()}
    result = json.loads(Path(told[-1][told[-1].index("--json") + 1]).read_text())
    if args.json:
        print(json.dumps({**result, "recipe": str(args.recipe), "wall_s": seconds}, indent=1))
        return
    print(", ".join(f"{name} {each / 60:.1f} min" for name, each in seconds.items()))
    print(f"{result['success']['successes']} of {result['success']['episodes']}")


if __name__ == "__main__":
    main()
