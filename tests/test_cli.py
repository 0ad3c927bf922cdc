"""The `vla` command: its table, its help, its exit codes, and that asking for help loads nothing heavy."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vla import __version__, cli
from vla.errors import UnknownName, UserError

HEAVY = ("torch", "numpy", "scipy", "mujoco", "transformers", "rich")


def vla(*argv: str, **kwargs) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "vla", *argv], capture_output=True, text=True, **kwargs)


def loaded_by(*argv: str) -> set[str]:
    """Top-level modules that a command line leaves in sys.modules."""
    code = (
        "import sys, json\nfrom vla.cli import main\n"
        f"try: main({list(argv)!r})\nexcept SystemExit: pass\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["nonsense"]], ids=" ".join)
def test_asking_loads_nothing_heavy(argv):
    assert not loaded_by(*argv) & set(HEAVY)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_commands_help_loads_no_torch_and_no_simulator(name):
    assert not loaded_by(name, "--help") & {"torch", "mujoco", "transformers", "metaworld", "tensorflow"}


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_with_an_example(name):
    module = cli.load(name)
    text = cli.parser_of(name, module).format_help()
    assert "example" in text.lower()
    assert f"vla {name}" in module.EXAMPLES


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_examples_are_lines_that_parse(name):
    for line in cli.load(name).EXAMPLES.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        words = words[: words.index(">")] if ">" in words else words
        if words[:1] == ["vla"]:
            assert cli.parse(words[1:])[0] is cli.load(name)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_table_says_what_the_module_says(name):
    assert cli.COMMANDS[name] == cli.load(name).SUMMARY


def test_every_module_of_commands_is_in_the_table():
    modules = {path.stem.replace("_", "-") for path in Path(cli.__file__).with_name("commands").glob("*.py")} - {"--init--"}
    assert modules == set(cli.COMMANDS)


def test_help_lists_every_command_with_its_line():
    text = vla("--help").stdout
    for name, summary in cli.COMMANDS.items():
        assert any(line.split() == [name, *summary.split()] for line in text.splitlines())


def test_version():
    done = vla("--version")
    assert (done.returncode, done.stdout.strip()) == (0, f"vla {__version__}")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ((), "usage: vla"),
        (("trian",), "unknown command 'trian'. Choices: "),
        (("--trian",), "error: vla: unrecognized arguments: --trian"),
        (("doctor", "--jsn"), "error: vla doctor: unrecognized arguments: --jsn. Did you mean --json? Run `vla doctor --help`."),
        (("doctor", "--js"), "unrecognized arguments: --js"),
    ],
    ids=["none", "command", "option", "argument", "abbreviation"],
)
def test_mistakes_exit_2_without_a_traceback(argv, expected):
    done = vla(*argv)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    if argv:
        assert len(done.stderr.strip().splitlines()) == 1


def test_unknown_command_lists_all_of_them():
    text = vla("trian").stderr
    assert all(name in text for name in cli.COMMANDS)


def test_user_errors_print_one_line_and_exit_with_their_code(monkeypatch, capsys):
    class Worse(UserError):
        exit_code = 7

    def run(args):
        raise Worse("no such thing. Choices: a, b.")

    monkeypatch.setattr(cli.load("doctor"), "run", run)
    assert cli.main(["doctor"]) == 7
    assert capsys.readouterr().err == "error: no such thing. Choices: a, b.\n"


def test_a_path_that_cannot_be_written_is_one_line(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(cli.load("doctor"), "run", lambda args: (tmp_path / "file" / "below").mkdir())
    assert cli.main(["doctor"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path / 'file' / 'below'}: Not a directory") and said.count("\n") == 1


def test_an_import_error_inside_a_command_is_not_hidden(monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "absent", "A command whose module is not there.")
    with pytest.raises(ModuleNotFoundError, match=r"vla\.commands\.absent"):
        cli.main(["absent"])


def test_interrupt_exits_130():
    # A command that waits, in a real process that gets a real SIGINT. A shell's background jobs inherit SIGINT ignored; not here.
    code = (
        "import signal, sys, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from vla import cli\nfrom vla.commands import doctor\n"
        "def run(args):\n    print('waiting', flush=True)\n    time.sleep(60)\n"
        "doctor.run = run\nsys.exit(cli.main(['doctor']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors


def test_a_reader_that_leaves_is_no_error():
    code = (
        "import sys\nfrom vla import cli\nfrom vla.commands import doctor\n"
        "def run(args):\n    sys.stdin.read()\n    print('x' * 1_000_000)\n    return 0\n"
        "doctor.run = run\nsys.exit(cli.main(['doctor']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()  # before the process, which waits for its input to end, writes a word
    process.stdin.close()
    assert process.wait(timeout=30) == 141
    assert process.stderr.read() == ""
    process.stderr.close()


def test_of_many_choices_the_nearest_and_the_fix_come_first():
    few, many = UnknownName("robot", "pandda", ["panda", "fetch"], "Name a file."), [f"robot{i}" for i in range(40)] + ["panda"]
    assert str(few) == "unknown robot 'pandda'. Choices: fetch, panda. Name a file."
    text = str(UnknownName("robot", "pandda", many, "Name a file."))
    assert text.startswith("unknown robot 'pandda'. Nearest: panda. Name a file. Choices: panda, robot0, ")
