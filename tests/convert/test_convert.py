"""The conversion as a whole: the same bytes however it is run, nothing lost by a kill, bad episodes counted, memory flat."""

from __future__ import annotations

import hashlib
import http.server
import importlib.util
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.convert import sources
from tests.convert.sources import CARD, Toy, card
from vla.cli import main
from vla.convert import lanes, pipe
from vla.convert.engine import Settings, convert
from vla.convert.estimate import estimate
from vla.convert.mapping import Mapper
from vla.convert.pictures import Encoding
from vla.convert.raw import Encoded, RawEpisode
from vla.convert.report import JOURNAL, Journal
from vla.convert.store import Store
from vla.data.quarantine import TooManyBad
from vla.data.shard import Dataset, verify
from vla.errors import Damaged, SchemaError, UnsafeChange, UserError
from vla.types import Frames, VideoFrames

ROOT = Path(__file__).parents[2]
SMALL = {"workers": 0, "max_shard_bytes": 20_000}
"""In this process, and a shard holds a few episodes."""


def toy(**options):
    return partial(Toy, **options)


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def ids(folder: Path) -> list[str]:
    dataset = Dataset.open(folder)
    return [dataset.episode(number).id for number in range(len(dataset))]


def test_a_source_becomes_a_dataset_and_the_card_stands_in_it(tmp_path):
    report = convert(toy(parts=3, per_part=4), card(), tmp_path / "out", Settings(**SMALL))
    assert (report.episodes, report.tried, report.bad.total()) == (12, 12, 0)
    assert not verify(tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.info.info["card"]["licence"] == "CC0-1.0" and dataset.info.robot.name == "arm"
    # A lane for each part, and the lanes in turn: an order that the source alone fixes.
    assert ids(tmp_path / "out") == [f"e{part * 4 + number:04d}" for number in range(4) for part in range(3)]
    assert not (tmp_path / "out" / JOURNAL).exists()


def test_any_number_of_workers_gives_the_same_bytes(tmp_path):
    source = toy(parts=18, per_part=2, bad={3}, broken={8})  # more parts than lanes
    for workers in (0, 1, 2):
        convert(source, card(), tmp_path / str(workers), Settings(workers=workers, max_shard_bytes=20_000, max_bad=1.0))
    assert len(digest(tmp_path / "0")) > 6
    assert digest(tmp_path / "0") == digest(tmp_path / "1") == digest(tmp_path / "2")


def test_bad_episodes_are_counted_by_cause_and_named(tmp_path):
    source = toy(parts=4, per_part=4, bad={1, 2}, broken={5}, cut={13})
    report = convert(source, card(), tmp_path / "out", Settings(**SMALL, max_bad=1.0))
    assert report.bad == {"nonfinite": 2, "damaged": 2} and report.episodes == 16 - 3 - 2
    listed = "\n".join(map(str, report.listed))
    assert "part-0: episode 'e0001': nonfinite: state 'hand': 'state': step 1 holds NaN" in listed
    assert "part-1: episode 'e0005': damaged: its checksum fails" in listed
    assert "part-3: damaged: part-3 is cut off after episode 13; what follows it in this part is not read" in listed
    kept = Dataset.open(tmp_path / "out").info.info["conversion"]
    assert kept["bad"] == {"nonfinite": 2, "damaged": 2} and len(kept["listed"]) == 4


def test_too_many_bad_episodes_stop_it(tmp_path):
    with pytest.raises(TooManyBad, match="11 of 11 episodes are bad .11 nonfinite., more than the allowed 10.0%: part-0: episode 'e0000'"):
        convert(toy(parts=1, per_part=40, bad=set(range(40))), card(), tmp_path / "out", Settings(**SMALL, max_bad=0.1))
    with pytest.raises(UserError, match="no dataset"):
        Dataset.open(tmp_path / "out")


def test_a_source_of_which_nothing_is_left_says_why(tmp_path):
    with pytest.raises(
        TooManyBad, match="no episode was stored: 2 of 2 episodes are bad .2 nonfinite.; left out by the card: none. part-0: ep"
    ):
        convert(toy(parts=1, per_part=2, bad={0, 1}), card(), tmp_path / "out", Settings(**SMALL, max_bad=1.0))
    with pytest.raises(TooManyBad, match="left out by the card: 4 episodes: shorter than 99 steps"):
        convert(toy(parts=1), card(drop={"shorter_than": 99}), tmp_path / "other", Settings(**SMALL))


def test_a_card_that_fits_no_episode_is_the_users_mistake(tmp_path):
    """Exit code 2 with what is wrong, after the first few and not after terabytes; 1 is for data that are bad."""
    fields = {**CARD["action"], "gripper": {"from": "action", "index": 3, "gripper": {"open": 5, "closed": 3}}}
    wrong = card(action=fields)
    with pytest.raises(
        SchemaError, match=r"card 'toy' does not fit the source: not one of 11 episodes .*\(range\).*the card says closed 3, open 5"
    ) as error:
        convert(toy(parts=1, per_part=40), wrong, tmp_path / "out", Settings(**SMALL))
    assert error.value.exit_code == 2
    with pytest.raises(SchemaError, match="not one of 3 episodes"):
        convert(toy(parts=1, per_part=3), wrong, tmp_path / "few", Settings(**SMALL))
    with pytest.raises(TooManyBad):  # one that fits, and it may be the data
        convert(toy(parts=1, per_part=40, bad=set(range(1, 40))), card(), tmp_path / "other", Settings(**SMALL))


def test_what_the_card_leaves_out_is_counted(tmp_path):
    drop = {"episodes": [{"column": "success", "equals": False, "why": "failures"}], "first_steps": 1}
    report = convert(toy(), card(drop=drop), tmp_path / "out", Settings(**SMALL))
    assert report.dropped == {"episodes: failures": 4, "steps: first of the episode": 8} and report.episodes == 8


@pytest.mark.parametrize("steps", [1, pytest.param(100_000, marks=pytest.mark.slow)])
def test_episodes_of_one_step_and_of_very_many(tmp_path, steps):
    one = sources.jpeg(sources.picture(0))

    class Long(Toy):
        def episodes(self, part: str) -> Iterator:
            pictures = {"image": Encoded(np.arange(steps), [one] * steps)}
            columns = {"state": np.zeros((steps, 3)), "action": np.ones((steps, 4)), "is_last": np.arange(steps) == steps - 1}
            yield RawEpisode(part, steps, columns, {"task": ["wait"]}, pictures)

    report = convert(partial(Long, parts=2), card(), tmp_path / "out", Settings(workers=0))
    dataset = Dataset.open(tmp_path / "out")
    assert report.steps == dataset.steps == 2 * steps and not verify(tmp_path / "out")


def test_a_repeated_id_is_refused_by_name(tmp_path):
    class Twice(Toy):
        def episodes(self, part: str) -> Iterator:
            yield from super().episodes("part-0")

    report = convert(partial(Twice, parts=2), card(), tmp_path / "out", Settings(**SMALL))
    assert report.bad == {"refused": 4} and "already added" in str(report.listed[0])


RUN = """
import sys
from functools import partial
from pathlib import Path
from tests.convert.sources import Toy, card
from vla.convert.engine import Settings, convert
out, kill, spare, workers, resume = sys.argv[1:]
source = partial(Toy, parts=18, per_part=2, bad={7}, kill=int(kill), spare=spare)
convert(source, card(), Path(out), Settings(workers=int(workers), max_shard_bytes=20_000, max_bad=1.0, resume=resume == "1"))
"""


WATCHED = """
def stop(progress):
    if progress.report.tried == TURN:
        print(*[child.pid for child in multiprocessing.active_children()], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def until(out: Path, turn: int, workers: int, resume: bool) -> list[str]:
    """The command of a conversion whose main process kills itself at a turn, after it has printed its workers' ids."""
    code = "import multiprocessing, os, signal" + RUN.replace("convert(source", WATCHED.replace("TURN", str(turn)) + "convert(source")
    code = code.replace('resume=resume == "1"))', 'resume=resume == "1"), stop)')
    return [sys.executable, "-c", code, str(out), "-1", "", str(workers), str(int(resume))]


def run_until(out: Path, turn: int, workers: int, resume: bool) -> subprocess.CompletedProcess:
    return subprocess.run(until(out, turn, workers, resume), cwd=ROOT, capture_output=True, text=True)


def run(out: Path, kill: int, spare: Path, workers: int, resume: bool) -> subprocess.CompletedProcess:
    words = [sys.executable, "-c", RUN, str(out), str(kill), str(spare), str(workers), str(int(resume))]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("kill", [22, *(pytest.param(kill, marks=pytest.mark.faults) for kill in (0, 5, 35))])
def test_killed_at_an_episode_and_resumed_it_gives_the_same_bytes(tmp_path, kill):
    spare = tmp_path / "spare"
    if not (tmp_path / "whole").exists():
        convert(toy(parts=18, per_part=2, bad={7}), card(), tmp_path / "whole", Settings(**SMALL, max_bad=1.0))
    died = run(tmp_path / "out", kill, spare, 0, False)
    assert died.returncode == -signal.SIGKILL and not (tmp_path / "out" / "dataset.json").exists()
    spare.touch()
    source = toy(parts=18, per_part=2, bad={7})
    report = convert(source, card(), tmp_path / "out", Settings(**SMALL, max_bad=1.0, resume=True))
    assert report.episodes == 35 and report.bad == {"nonfinite": 1} and report.tried == 36
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")


@pytest.mark.faults
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_again_and_again(tmp_path, workers):
    convert(toy(parts=18, per_part=2, bad={7}), card(), tmp_path / "whole", Settings(**SMALL, max_bad=1.0))
    for number, turn in enumerate([9, 18, 27, 36]):  # of a run that counts from the start each time
        assert run_until(tmp_path / "out", turn, workers, number > 0).returncode == -signal.SIGKILL
    report = convert(toy(parts=18, per_part=2, bad={7}), card(), tmp_path / "out", Settings(**SMALL, max_bad=1.0, resume=True))
    assert report.episodes == 35 and digest(tmp_path / "out") == digest(tmp_path / "whole")


@pytest.mark.faults
def test_finished_parts_are_not_read_again(tmp_path):
    convert(toy(parts=4, per_part=8), card(), tmp_path / "whole", Settings(**SMALL))
    assert run(tmp_path / "out", 35, tmp_path / "spare", 0, False).returncode == -signal.SIGKILL
    read = []

    class Watched(Toy):
        def episodes(self, part: str) -> Iterator:
            read.append(part)
            yield from super().episodes(part)

    report = convert(partial(Watched, parts=18, per_part=2, bad={7}), card(), tmp_path / "out", Settings(**SMALL, max_bad=1.0, resume=True))
    assert 0 < len(read) < 18 and report.resumed > 10 and report.episodes == 35


@pytest.mark.faults
def test_a_dead_worker_ends_it_by_name_and_it_resumes(tmp_path):
    spare = tmp_path / "spare"
    source = toy(parts=18, per_part=2, bad={7}, kill=20, spare=str(spare))
    with pytest.raises(Damaged, match="part-10: the process that reads it ended with code -9"):
        convert(source, card(), tmp_path / "out", Settings(workers=2, max_shard_bytes=20_000, max_bad=1.0))
    spare.touch()
    convert(source, card(), tmp_path / "out", Settings(workers=2, max_shard_bytes=20_000, max_bad=1.0, resume=True))
    assert sorted(ids(tmp_path / "out")) == [f"e{number:04d}" for number in range(36) if number != 7]


@pytest.mark.faults
def test_workers_end_when_the_main_process_is_killed(tmp_path):
    # A source of which much is left when it dies: what is sent ahead fits the pipes otherwise, and the workers are done.
    words = [word.replace("per_part=2", "per_part=200") for word in until(tmp_path / "out", 20, 2, False)]
    child = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    pids = child.stdout.read().split()  # comes to its end when every process that holds the pipe has ended
    assert child.wait() == -signal.SIGKILL and len(pids) == 2
    for pid in pids:
        status = Path(f"/proc/{pid}/stat")
        assert not status.exists() or status.read_text().split()[2] == "Z"


@pytest.mark.faults
def test_interrupted_it_says_so_once_and_resumes(tmp_path):
    words = until(tmp_path / "out", 20, 2, False)
    words[2] = words[2].replace("os.kill(os.getpid(), signal.SIGKILL)", "os.killpg(os.getpgid(0), signal.SIGINT)")
    words[2] = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {words[2]}"  # in the background it is ignored
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, start_new_session=True)
    assert done.returncode != 0 and done.stderr.count("Traceback") == 1 and "KeyboardInterrupt" in done.stderr
    report = convert(toy(parts=18, per_part=2, bad={7}), card(), tmp_path / "out", Settings(**SMALL, max_bad=1.0, resume=True))
    assert report.episodes == 35 and report.resumed > 0


@pytest.mark.faults
def test_resuming_something_else_is_refused(tmp_path):
    assert run(tmp_path / "out", 22, tmp_path / "spare", 0, False).returncode == -signal.SIGKILL
    source = toy(parts=18, per_part=2, bad={7})
    with pytest.raises(UnsafeChange, match="begun with another card"):
        convert(source, card(licence="MIT"), tmp_path / "out", Settings(**SMALL, resume=True))
    with pytest.raises(UnsafeChange, match="begun with another encoding"):
        convert(source, card(), tmp_path / "out", Settings(Encoding(quality=50), **SMALL, resume=True))
    with pytest.raises(UnsafeChange, match="begun with another list of files"):
        convert(toy(parts=17), card(), tmp_path / "out", Settings(**SMALL, resume=True))
    with pytest.raises(UserError, match="unfinished dataset"):
        convert(source, card(), tmp_path / "out", Settings(**SMALL))
    os.unlink(tmp_path / "out" / JOURNAL)
    with pytest.raises(UserError, match="no unfinished conversion wrote"):
        convert(source, card(), tmp_path / "out", Settings(**SMALL, resume=True))


def test_a_torn_line_of_the_journal_is_as_if_it_were_not_there(tmp_path):
    journal = Journal(tmp_path, {"card": 1}, resume=False)
    from vla.convert.report import PartRecord

    journal.finish("a", PartRecord(2, ["x"]))
    journal.close()
    whole = (tmp_path / JOURNAL).read_bytes()
    for cut in range(len(whole)):
        (tmp_path / JOURNAL).write_bytes(whole[:cut])
        again = Journal(tmp_path, {"card": 1}, resume=True)
        again.finish("b", PartRecord(1, ["y"]))
        again.close()
        assert list(Journal(tmp_path, {"card": 1}, resume=True).parts) == ["b"]
    (tmp_path / JOURNAL).write_bytes(whole.replace(b'"slots"', b'"s"'))
    with pytest.raises(Damaged, match="line 2 is damaged"):
        Journal(tmp_path, {"card": 1}, resume=True)


@pytest.mark.faults
def test_a_full_disk_is_said_and_resumed_from(tmp_path):
    code = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (16_000, 16_000))\n" + RUN
    code = code.replace("import resource", "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out"), "-1", "", "0", "0"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and "File too large" in done.stderr  # EFBIG stands in for ENOSPC: the write fails, nothing is half done
    report = convert(toy(parts=18, per_part=2, bad={7}), card(), tmp_path / "out", Settings(**SMALL, max_bad=1.0, resume=True))
    assert report.episodes == 35


def test_a_limit_takes_the_first_of_the_order(tmp_path):
    report = convert(toy(parts=3), card(), tmp_path / "out", Settings(**SMALL, limit_episodes=5))
    assert report.episodes == 5 and ids(tmp_path / "out") == ["e0000", "e0004", "e0008", "e0001", "e0005"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_the_source(tmp_path):
    code = (
        "import resource, sys\n" + RUN.replace("parts=18, per_part=2, bad={7}", "parts=20, per_part=int(sys.argv[5])")
        .replace("resume = sys.argv[1:]", "resume = sys.argv[1:]; resume = '0'")
        + "\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )  # fmt: skip
    peak = {}
    for per_part in (40, 160):
        words = [sys.executable, "-c", code, str(tmp_path / str(per_part)), "-1", "", "0", str(per_part)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
        peak[per_part] = int(done.stdout)
    assert len(Dataset.open(tmp_path / "160")) == 3200
    assert peak[160] < 1.05 * peak[40], peak


def test_disk_and_time_are_estimated_and_a_small_disk_is_refused(tmp_path, monkeypatch):
    found = estimate(toy(parts=6), card(), Encoding(), workers=2)
    convert(toy(parts=6), card(), tmp_path / "out", Settings(**SMALL))
    actual = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.tar"))
    assert found.episodes == 24 and found.sampled == 4 and 0.5 < found.bytes / actual < 1.5
    from vla.convert.estimate import check_disk

    with pytest.raises(UserError, match="bytes are needed and .* are free"):
        check_disk(1 << 60, tmp_path / "a" / "b")


def write_plugin(folder: Path) -> tuple[str, str, str]:
    """A reader, a card and a robot outside of the package: (plugin, card, embodiment)."""
    import yaml

    (folder / "mine.py").write_text(
        "from tests.convert.sources import Toy\n\n\nclass Mine(Toy):\n"
        "    def __init__(self, source, parts=3):\n        super().__init__(parts=parts)\n"
    )
    (folder / "robot.py").write_text("from tests.convert.sources import ROBOT as EMBODIMENT\n")
    (folder / "toy.yaml").write_text(yaml.safe_dump({**CARD, "reader": {"parts": 2}}))
    return f"{folder / 'mine.py'}:Mine", str(folder / "toy.yaml"), str(folder / "robot.py")


def test_the_command_with_a_reader_card_and_robot_of_ones_own(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the workers
    plugin, its_card, robot = write_plugin(tmp_path)
    common = ["convert", "toy", str(tmp_path), "--plugin", plugin, "--card", its_card, "--embodiment", robot]
    assert main([*common, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "8 episodes in 2 parts" in said and "not in the card: is_last" in said
    assert "action gripper" in said and "open01" in said and "front: 6 pictures of 24 x 32" in said and "do 0" in said
    assert main([*common, "--out", str(tmp_path / "out"), "--workers", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 8
    assert len(Dataset.open(tmp_path / "out")) == 8
    assert main([*common, "--out", str(tmp_path / "out"), "--resume"]) == 2
    assert "holds a finished dataset; nothing is left to resume" in capsys.readouterr().err
    assert main([*common, "--option", "parts=1", "--out", str(tmp_path / "one"), "--workers", "0"]) == 0
    assert len(Dataset.open(tmp_path / "one")) == 4
    assert main([*common, "--option", "colour=red", "--out", str(tmp_path / "two")]) == 2
    assert "has no option 'colour'" in capsys.readouterr().err


def test_the_share_of_bad_episodes_is_a_warning_at_the_end(tmp_path, capsys):
    plugin, its_card, robot = write_plugin(tmp_path)
    (tmp_path / "mine.py").write_text((tmp_path / "mine.py").read_text().replace("parts=parts", "parts=parts, bad={2}"))
    common = ["convert", "toy", str(tmp_path), "--plugin", plugin, "--card", its_card, "--embodiment", robot, "--workers", "0"]
    assert main([*common, "--option", "parts=1", "--out", str(tmp_path / "out")]) == 0
    assert "warning: 25.0% of the episodes (1 of 4) are bad and were not stored" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rlds"], "give FORMAT and SRC"),
        (["rlds", "x"], "give --card"),
        (["rlds", "x", "--card", "no_such", "--out", "o"], "unknown card 'no_such'"),
        (["lerobot", ".", "--card", "bridge_oxe", "--out", "o"], "card 'bridge_oxe' is for format rlds, not lerobot"),
        (["nothing", "x", "--dry-run"], "unknown format 'nothing'"),
        (["rlds", "no/such/folder", "--dry-run"], "there is nothing at no/such/folder"),
        (["rlds", "ftp://x/y", "--dry-run"], "URLs of abfs, "),
        (["rlds", "file://a::b", "--dry-run"], "URLs of abfs, "),
        (["rlds", "x", "--plugin", "no.py:A", "--dry-run"], "give file.py:Class"),
        (["rlds", ".", "--reader", "other", "--dry-run"], "unknown reader of rlds 'other'. Choices: tfds"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "-",
)
def test_mistakes_on_the_command_line(words, message, capsys):
    assert main(["convert", *words]) == 2
    assert message in capsys.readouterr().err


def test_formats_and_cards_are_listed(capsys):
    assert main(["convert", "--list"]) == 0
    said = capsys.readouterr().out
    assert "rlds" in said and "lerobot" in said and "cards:" in said


def test_a_local_store_stays_inside_its_folder(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("a")
    (tmp_path / "secret").write_text("s")
    assert Store.of(tmp_path / "in").files() == {"a.txt": 1}
    (tmp_path / "in" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="leads out"):
        Store.of(tmp_path / "in").files()


def test_files_of_a_url_come_one_by_one_and_go(tmp_path, monkeypatch):
    monkeypatch.setattr("vla.convert.store.RETRY_AFTER_S", (0.0,))
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "far" / "deep" / "a.bin").write_bytes(b"12345")
    (tmp_path / "far" / "b.json").write_bytes(b"{}")
    store = Store.of(f"file://{tmp_path}/far", tmp_path / "cache")
    assert store.remote and store.files() == {"b.json": 2, "deep/a.bin": 5}
    with store.local("deep/a.bin") as place:
        assert place.read_bytes() == b"12345" and place.is_relative_to(tmp_path / "cache")
    assert not place.exists() and store.read("b.json", 10) == b"{}"
    with pytest.raises(Damaged, match="at most 1 are read"):
        store.read("b.json", 1)
    (tmp_path / "far" / "deep" / "a.bin").write_bytes(b"123")  # it changed since it was listed
    with pytest.raises(UserError, match="3 bytes arrived of 5.*--resume"), store.local("deep/a.bin"):
        pass
    (tmp_path / "far" / "deep" / "a.bin").unlink()
    with pytest.raises(UserError, match="cannot be fetched"), store.local("deep/a.bin"):
        pass
    with pytest.raises(UserError, match="there is nothing"):
        Store.of(f"file://{tmp_path}/empty", tmp_path / "cache").files()


@pytest.mark.skipif(importlib.util.find_spec("aiohttp") is None, reason="needs the extra remote")
def test_files_over_http(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a.bin").write_bytes(b"12345")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "far"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        store = Store.of(f"http://127.0.0.1:{server.server_address[1]}", tmp_path / "cache")
        assert store.files() == {"a.bin": 5} and store.read("a.bin", 10) == b"12345"
        server.shutdown()


def test_a_listing_that_points_elsewhere_is_refused(tmp_path):
    store = Store.of(f"file://{tmp_path}", tmp_path / "cache")
    for name in ("/data/../../etc/passwd", "/data"):
        with pytest.raises(UserError, match="lies outside"):
            store._relative(name, "/data")


def test_a_whole_source_is_fetched_where_the_format_needs_it(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a").write_bytes(b"123")
    store = Store.of(f"file://{tmp_path}/far", tmp_path / "cache")
    assert (store.fetch_all() / "a").read_bytes() == b"123"
    assert np.array_equal(np.fromfile(store.fetch_all() / "a", np.uint8), [49, 50, 51])  # and not fetched again
    assert sources.ROBOT.limits is None


class Unsendable(Toy):
    """Facts that no pipe takes."""

    def episodes(self, part: str) -> Iterator:
        for raw in super().episodes(part):
            yield replace(raw, facts={"made by": lambda: part})


@pytest.mark.thorough
def test_a_slot_that_cannot_be_sent_ends_it_and_hangs_nothing(tmp_path, capfd):
    with pytest.raises(Damaged, match="the process that reads it ended with code 1"):
        convert(partial(Unsendable, parts=40), card(), tmp_path / "out", Settings(workers=2))
    assert "pickle" in capfd.readouterr().err


def through(pipe_end, what, episode) -> bytes:
    """What is sent, as bytes."""
    ours, theirs = pipe_end
    sending = threading.Thread(target=lambda: (pipe.send(theirs, what, episode), theirs.close()))
    sending.start()
    with open(ours.fileno(), "rb", closefd=False) as everything:
        data = everything.read()
    sending.join()
    return data


def test_an_episode_comes_through_a_pipe_as_it_was_and_cut_off_it_is_an_end():
    seen = Mapper(card()).episode(sources.episode(steps=4)).episode
    long = os.urandom(300_000)  # more than a pipe holds
    video = replace(seen, frames={"front": Frames(np.arange(3), (b"", long, b"x")), "wrist": VideoFrames(np.arange(2), 4 * long)})
    for episode in (seen, video, None):
        ours, theirs = multiprocessing.Pipe(duplex=False)
        sending = threading.Thread(target=pipe.send, args=(theirs, "what", episode))
        sending.start()
        what, found = pipe.receive(ours)
        sending.join()
        assert what == "what" and (found is None) == (episode is None)
        if episode is not None:
            assert pickle.dumps(found.frames) == pickle.dumps(episode.frames) and np.array_equal(found.action, episode.action)
    whole = through(multiprocessing.Pipe(duplex=False), lanes.Slot("part", "id"), seen)
    assert all(piece in whole for frames in seen.frames.values() for piece in frames.jpeg)
    for arrived in (*range(100), *range(100, len(whole), 97)):
        ours, theirs = multiprocessing.Pipe(duplex=False)
        os.write(theirs.fileno(), whole[:arrived])
        theirs.close()
        with pytest.raises(pipe.CUT):
            pipe.receive(ours)
