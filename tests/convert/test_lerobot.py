"""LeRobot folders as `lerobot` wrote them, and every way in which they may be broken (golden/README.md says what they hold)."""

from __future__ import annotations

import copy
import io
import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

av = pytest.importorskip("av")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from vla.convert.lerobot import LeRobot  # noqa: E402
from vla.convert.lerobot_meta import exact_rate  # noqa: E402
from vla.convert.raw import Clip, Encoded, Unreadable  # noqa: E402
from vla.convert.safe import fill, inside  # noqa: E402
from vla.errors import Damaged, SchemaError, UnknownName, UserError  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"
NAMES = ("lerobot_v30_videos", "lerobot_v30_images", "lerobot_v21_videos")
LENGTHS = (7, 5, 1)
TOP = "observation.images.top"


def read(folder: Path, wanted: frozenset[str] | None = None) -> list:
    reader = LeRobot(folder)
    reader.wanted = wanted
    return [sound(episode) for part in reader.parts() for episode in reader.episodes(part)]


def sound(episode):
    if isinstance(episode, Unreadable):
        raise Damaged(episode.detail)
    return episode


def colours(pictures) -> np.ndarray:
    """(n, 3) mean colour of each picture; a clip is decoded from its first frame to its last, without seeking."""
    if isinstance(pictures, Encoded):
        return np.array([np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).mean((0, 1)) for data in pictures.data])
    assert isinstance(pictures, Clip)
    with av.open(str(pictures.path)) as container:
        frames = [(frame.time, frame.to_ndarray(format="rgb24").mean((0, 1))) for frame in container.decode(video=0)]
    times_s = np.array([time_s for time_s, _ in frames])
    return np.array([frames[int(np.searchsorted(times_s, time_s, side="right")) - 1][1] for time_s in pictures.time_s])


@pytest.fixture
def copied(tmp_path):
    def copy_of(name: str) -> Path:
        shutil.copytree(GOLDEN / name, tmp_path / name)
        return tmp_path / name

    return copy_of


def edit_info(folder: Path, **changes) -> None:
    path = folder / "meta" / "info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_table(path: Path, change) -> None:
    pq.write_table(change(pq.read_table(path)), path)


@pytest.mark.parametrize("name", NAMES)
def test_what_lerobot_wrote_is_what_is_read(name):
    reader = LeRobot(GOLDEN / name)
    assert reader.rate_hz == 10 and (reader.size().episodes, reader.size().steps) == (3, 13)
    assert {f.name: (f.kind, f.shape) for f in reader.features()} == {
        TOP: ("pictures", (48, 64, 3)),
        "observation.state": ("column", (3,)),
        "action": ("column", (3,)),
        "next.done": ("column", (1,)),
        "task": ("text", ()),
    }
    assert reader.names["action"] == ("x", "y", "gripper")
    episodes = read(GOLDEN / name)
    assert [(e.id, e.steps) for e in episodes] == [(f"episode-{i:06d}", n) for i, n in enumerate(LENGTHS)]
    for index, episode in enumerate(episodes):
        step = np.arange(episode.steps)
        assert (episode.columns["observation.state"] == np.stack([step * 0 + index, step, step * 0 + 0.5], -1)).all()
        assert (episode.columns["action"] == np.stack([step * 0 + index, step + 1, 1 / (step + 3)], -1).astype(np.float32)).all()
        assert (episode.columns["next.done"][:, 0] == (step == episode.steps - 1)).all()
        assert (episode.time_s == step / 10).all()  # exact, though stored in single precision
        want = np.stack([20 + 30 * step, step * 0 + 60 * index, step * 0 + 60], -1)
        assert np.abs(colours(episode.pictures[TOP]) - want).max() < (8 if "videos" in name else 0.01)
    assert episodes[0].texts == {"task": ["push the cup"]}
    assert episodes[1].texts == {"task": ["lift the cup"] * 3 + ["put it down"] * 2}
    assert set(episodes[1].facts["tasks"]) == {"lift the cup", "put it down"}


def test_format_2_0(copied):
    folder = copied("lerobot_v21_videos")  # 2.0 differs in its statistics alone: one stats.json, none per episode
    edit_info(folder, codebase_version="v2.0")
    (folder / "meta" / "episodes_stats.jsonl").unlink()
    assert [e.steps for e in read(folder)] == list(LENGTHS)


def test_a_column_of_task_indices_is_a_text(copied):
    folder = copied("lerobot_v30_images")
    name = "annotation.human.action.task_description"
    info = json.loads((folder / "meta/info.json").read_text())
    edit_info(folder, features={**info["features"], name: {"dtype": "int64", "shape": [1], "names": None}})
    _rows(folder, lambda table: table.append_column(name, pa.array([2] * 7 + [0, 0, 1, 1, 1] + [0])))
    reader = LeRobot(folder, texts={"said": name})
    reader.wanted = frozenset({"said", "action"})
    assert ("said", "text") in {(f.name, f.kind) for f in reader.features()}
    said = [episode.texts["said"] for part in reader.parts() for episode in reader.episodes(part)]
    assert said == [["put it down"], ["push the cup"] * 2 + ["lift the cup"] * 3, ["push the cup"]]
    with pytest.raises(UnknownName, match="unknown column 'nothing'"):
        LeRobot(folder, texts={"said": "nothing"})


def test_only_what_is_wanted_is_read():
    for name in NAMES:
        for episode in read(GOLDEN / name, frozenset({"action", "task"})):
            assert set(episode.columns) == {"action"} and not episode.pictures and set(episode.texts) == {"task"}


def test_a_reader_moves_to_another_process_without_its_tables():
    reader = LeRobot(GOLDEN / NAMES[0])
    reader.wanted = frozenset({"action"})
    reader.parts()
    moved = copy.copy(reader)  # as a pickle would, through __getstate__
    assert "_rows" in vars(reader) and "_rows" not in vars(moved)
    assert moved.wanted == reader.wanted and [e.steps for e in moved.episodes(moved.parts()[0])] == list(LENGTHS)


def test_rows_are_read_a_few_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("vla.convert.lerobot.BATCH_ROWS", 2)
    assert [len(e.columns["action"]) for e in read(GOLDEN / "lerobot_v30_images")] == list(LENGTHS)
    monkeypatch.setattr("vla.convert.lerobot.MAX_EPISODE_BYTES", 100)
    with pytest.raises(Damaged, match="larger than 100 bytes"):
        read(GOLDEN / "lerobot_v30_images")


@pytest.mark.parametrize(
    ("fps", "rate_hz"),
    [(30, Fraction(30)), (29.97, Fraction(30000, 1001)), (23.976, Fraction(24000, 1001)), (59.94, Fraction(60000, 1001))]
    + [(12.5, Fraction(25, 2)), (3.75, Fraction(15, 4)), ("30000/1001", Fraction(30000, 1001)), (30.0, Fraction(30))],
)
def test_rates_are_exact(fps, rate_hz):
    assert exact_rate(fps) == rate_hz


@pytest.mark.parametrize("fps", [0, -1, 1e9])
def test_what_is_no_rate(fps):
    with pytest.raises(SchemaError, match="no frame rate"):
        exact_rate(fps)


def test_a_clock_that_is_not_the_rates_is_handed_on(copied):
    folder = copied("lerobot_v30_images")
    times = [0, 0.1, 0.2, 0.2, 0.35, 0.3, 0.6, *(0.1 * i for i in range(5)), 0]

    def change(table):
        return table.set_column(table.column_names.index("timestamp"), "timestamp", pa.array(times, pa.float32()))

    edit_table(folder / "data/chunk-000/file-000.parquet", change)
    first, second, _ = read(folder)
    assert (first.time_s == np.float32(times[:7])).all()  # not repaired here: the converter refuses it by name
    assert (second.time_s == np.arange(5) / 10).all()


@pytest.mark.parametrize(
    ("name", "damage", "error", "message"),
    [
        ("lerobot_v21_videos", lambda f: (f / "videos/chunk-000" / TOP / "episode_000001.mp4").unlink(), Damaged, "mp4 is missing"),
        ("lerobot_v21_videos", lambda f: _swap(f, 0, 1), Damaged, "episode 0: .* lasts 0.500 s, shorter than its table"),
        ("lerobot_v21_videos", lambda f: _swap(f, 1, 0), Damaged, "episode 1: .* lasts 0.700 s, longer than its table"),
        ("lerobot_v21_videos", lambda f: _video(f).write_bytes(b"no video"), Damaged, "is no video"),
        ("lerobot_v30_videos", lambda f: _spans(f, 1, to=2.0), Damaged, "episode 1: 5 rows last 0.500 s; the episode table gives them"),
        ("lerobot_v30_videos", lambda f: _spans(f, 2, start=1.5, to=1.6), Damaged, "episode 2: .* lasts 1.300 s, shorter than its table"),
        ("lerobot_v30_videos", lambda f: _spans(f, 2, start=0.5, to=0.6), Damaged, "episode 1: .* longer than its table"),
        ("lerobot_v30_images", lambda f: _rows(f, lambda t: t.slice(0, 12)), Damaged, "ends 1 rows before the end of episode 2"),
        ("lerobot_v30_images", lambda f: _rows(f, lambda t: pa.concat_tables([t, t.slice(12)])), Damaged, "goes on after its last episode"),
        ("lerobot_v30_images", lambda f: _rows(f, lambda t: t.slice(1)), Damaged, "episode 0: its rows belong to episode 1"),
        ("lerobot_v30_images", lambda f: _rows(f, lambda t: t.drop_columns(["action"])), Damaged, r"columns \['action'\] missing"),
        ("lerobot_v30_images", lambda f: _rows(f, lambda t: t.rename_columns({"action": "act"})), Damaged, r"\['act'\] not declared"),
        ("lerobot_v30_images", lambda f: _set(f, "action", [[1.0, 2.0]] * 13), Damaged, "'action' has 2 numbers a row"),
        (
            "lerobot_v30_images",
            lambda f: _set(f, "action", [[1.0, 2, 3], [1.0]] + [[1.0, 2, 3]] * 11),
            Damaged,
            "rows of .1, 3. numbers",
        ),
        ("lerobot_v30_images", lambda f: _set(f, "action", [None] + [[1.0, 2, 3]] * 12), Damaged, "rows of"),
        ("lerobot_v30_images", lambda f: _set(f, "action", ["text"] * 13), Damaged, "string, not numbers"),
        ("lerobot_v30_images", lambda f: _set(f, "task_index", [9] * 13), Damaged, "task_index 9 is not among the 3 texts"),
        ("lerobot_v30_images", lambda f: _set(f, TOP, [None] * 13), Damaged, "row 0 holds no picture"),
        ("lerobot_v30_images", lambda f: _cut(f / "data/chunk-000/file-000.parquet"), Damaged, "does not read as parquet"),
        ("lerobot_v30_images", lambda f: _cut(f / "meta/episodes/chunk-000/file-000.parquet"), Damaged, "does not read as parquet"),
        ("lerobot_v30_images", lambda f: (f / "meta/tasks.parquet").unlink(), Damaged, "tasks.parquet is missing"),
        ("lerobot_v30_images", lambda f: edit_info(f, total_episodes=4), Damaged, "has 3 episodes of 13 rows; info.json says 4 of 13"),
        ("lerobot_v21_videos", lambda f: (f / "meta/episodes.jsonl").write_text('{"length": 3}\n'), SchemaError, "'episode_index'"),
        ("lerobot_v21_videos", lambda f: (f / "meta/tasks.jsonl").write_text("[[[\n"), Damaged, "line 1 is no JSON"),
        ("lerobot_v21_videos", lambda f: edit_info(f, codebase_version="v1.6"), UserError, "format 1.6; this reads 2.0, 2.1, 3.0"),
        ("lerobot_v21_videos", lambda f: edit_info(f, features={"action": 3}), SchemaError, "lacks or misuses"),
        ("lerobot_v21_videos", lambda f: (f / "meta/info.json").write_text("{"), Damaged, "info.json is damaged"),
        ("lerobot_v21_videos", lambda f: (f / "meta/info.json").unlink(), UserError, "no LeRobot dataset"),
    ],
)
def test_damage_is_named(copied, name, damage, error, message):
    folder = copied(name)
    damage(folder)
    with pytest.raises(error, match=message):
        read(folder)


def test_the_episodes_after_a_bad_one_are_read(copied):
    for name, damage in (("lerobot_v30_images", lambda f: _task_of_the_second(f)), ("lerobot_v21_videos", lambda f: _video(f, 1).unlink())):
        folder = copied(name)
        damage(folder)
        reader = LeRobot(folder)
        first, second, third = (episode for part in reader.parts() for episode in reader.episodes(part))
        assert isinstance(second, Unreadable) and second.id == "episode-000001" and (first.steps, third.steps) == (7, 1)


@pytest.mark.parametrize("name", ["lerobot_v30_images", "lerobot_v21_videos"])
def test_altered_bytes_end_in_an_error_of_ours_or_in_nothing(copied, name):
    folder = copied(name)
    rng = np.random.default_rng(7)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".mp4")
    refused = 0
    for _ in range(60):
        path = files[int(rng.integers(len(files)))]
        whole = path.read_bytes()
        altered = bytearray(whole)
        for place in rng.integers(len(whole), size=2):
            altered[place] = int(rng.integers(256))
        path.write_bytes(bytes(altered))
        try:
            read(folder)
        except UserError:
            refused += 1
        path.write_bytes(whole)
    assert refused > 20 and len(read(folder)) == 3


def test_a_picture_may_lie_beside_its_row_and_nowhere_else(copied, tmp_path):
    folder = copied("lerobot_v30_images")
    (folder / "one.png").write_bytes(LeRobotPng)
    _set(folder, TOP, [{"bytes": None, "path": "one.png"}] * 13)
    assert bytes(read(folder)[0].pictures[TOP].data[0]) == LeRobotPng
    (tmp_path / "secret.png").write_bytes(LeRobotPng)
    for path in ("../secret.png", str(tmp_path / "secret.png")):
        _set(folder, TOP, [{"bytes": None, "path": path}] * 13)
        with pytest.raises(Damaged, match="leads out of the dataset"):
            read(folder)


@pytest.mark.parametrize("template", ["../{episode_index}.parquet", "/etc/passwd", "data/../../x"])
def test_templates_stay_inside(copied, template):
    folder = copied("lerobot_v21_videos")
    edit_info(folder, data_path=template)
    with pytest.raises(SchemaError, match="leads out of the dataset"):
        read(folder)


@pytest.mark.parametrize("template", ["{episode_index.__class__}", "{episode_index:0999999999d}", "{0}", "{{}}", "{secret}"])
def test_templates_hold_nothing_but_numbers(template):
    with pytest.raises(SchemaError, match="path template"):
        fill(template, {"episode_index": 3})
    assert fill("a/{episode_index:06d}-{episode_index}", {"episode_index": 3}) == "a/000003-3"


def test_links_lead_only_into_a_hub_cache(tmp_path):
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "abc", tmp_path / "hub" / "blobs"
    shutil.copytree(GOLDEN / "lerobot_v30_images", snapshot)
    blobs.mkdir()
    file = snapshot / "data/chunk-000/file-000.parquet"
    file.rename(blobs / "0123")
    file.symlink_to(blobs / "0123")
    assert len(read(snapshot)) == 3
    (blobs / "0123").rename(tmp_path / "elsewhere")
    file.unlink()
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SchemaError, match="leads out of the dataset"):
        inside(snapshot, "data/chunk-000/file-000.parquet")


def test_an_episode_without_rows_is_handed_on_empty(copied):
    folder = copied("lerobot_v21_videos")
    path = folder / "data/chunk-000/episode_000002.parquet"
    edit_table(path, lambda table: table.slice(0, 0))
    (folder / "meta/episodes.jsonl").write_text(
        "".join(json.dumps({"episode_index": i, "tasks": ["push the cup"], "length": n}) + "\n" for i, n in enumerate((7, 5, 0)))
    )
    edit_info(folder, total_frames=12)
    reader = LeRobot(folder)
    reader.wanted = frozenset({"action", "task"})
    empty = next(iter(reader.episodes("episode-000002")))
    assert empty.steps == 0 and empty.columns["action"].shape == (0, 3)


def _task_of_the_second(folder: Path) -> None:
    _set(folder, "task_index", [0] * 7 + [99] * 5 + [0])


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (1, 2, 3)).save(buffer, "PNG")
    return buffer.getvalue()


LeRobotPng = _png()


def _video(folder: Path, index: int = 0) -> Path:
    return folder / "videos/chunk-000" / TOP / f"episode_{index:06d}.mp4"


def _swap(folder: Path, index: int, other: int) -> None:
    shutil.copy(_video(folder, other), _video(folder, index))


def _rows(folder: Path, change) -> None:
    edit_table(folder / "data/chunk-000/file-000.parquet", change)


def _set(folder: Path, column: str, values: list) -> None:
    _rows(folder, lambda table: table.set_column(table.column_names.index(column), column, pa.array(values)))


def _spans(folder: Path, episode: int, start: float | None = None, to: float | None = None) -> None:
    def change(table):
        for name, value in ((f"videos/{TOP}/from_timestamp", start), (f"videos/{TOP}/to_timestamp", to)):
            if value is not None:
                values = table.column(name).to_pylist()
                values[episode] = value
                table = table.set_column(table.column_names.index(name), name, pa.array(values))
        return table

    edit_table(folder / "meta/episodes/chunk-000/file-000.parquet", change)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
