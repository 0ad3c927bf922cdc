from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import simplejpeg

from vla.data.format import is_validation, read_header
from vla.data.images import decode_jpeg
from vla.data.latents import read_latents, write_latents
from vla.data.memory import Ring
from vla.data.mixture import Mixture
from vla.data.pipeline import Pipeline
from vla.data.quarantine import BadSample, TooManyBad
from vla.data.shard import Dataset, DatasetInfo, ShardWriter
from vla.embodiment import Field, Space, resample
from vla.errors import Damaged, SchemaError, StatsMissing, UnknownName, UserError
from vla.types import Frames, Span

from .episodes import ROBOT, jpeg, make_episode, make_video

ROBOTS = {"arm": ROBOT}


def write(folder, episodes, **info):
    info = {"name": folder.name, "embodiment": ROBOT.to_json(), **info}
    with ShardWriter(folder, DatasetInfo(**info)) as writer:
        for episode in episodes:
            writer.add(episode)
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "arms", [make_episode(f"e{i}", n, i) for i, n in enumerate((12, 1, 3, 30))])


def one(folder, robots=ROBOTS, **options):
    return Pipeline(Mixture.of([folder], val_fraction=0.0), robots, **options)


def red(image):
    return int(np.round(image[..., 0].mean()))


def test_samples_are_what_was_recorded(folder):
    pipeline = one(folder, seed=3, block=46)
    given = {f"e{i}": make_episode(f"e{i}", n, i) for i, n in enumerate((12, 1, 3, 30))}
    seen = set()
    for sample in pipeline.samples(range(46)):
        episode, i = given[sample.episode], sample.step
        seen.add((sample.episode, i))
        assert sample.source == "arms" and sample.observation.embodiment == "arm"
        assert list(sample.observation.images) == ["front", "wrist"]
        for number, image in enumerate(sample.observation.images.values()):
            assert image.shape == (1, 16, 16, 3) and image.dtype == np.uint8
            assert abs(red(image) - i) <= 2 and abs(int(image[..., 1].mean()) - 40 * number) <= 2
        np.testing.assert_array_equal(sample.observation.state, episode.state[[i]])
        assert sample.observation.instruction == next(s.text for s in episode.instructions if s.start <= i < s.stop)
        left = min(4, episode.steps - i)
        np.testing.assert_array_equal(sample.valid_T, np.arange(4) < left)
        np.testing.assert_allclose(sample.action_TA[:left, :3], episode.action[i : i + left, :3] - episode.state[i, :3])
        np.testing.assert_array_equal(sample.action_TA[:left, 3], episode.action[i : i + left, 3])
        np.testing.assert_array_equal(sample.action_TA[left:], np.repeat(sample.action_TA[left - 1 : left], 4 - left, 0))
    assert len(seen) == 46  # every step of every episode once: also of the one shorter than a chunk
    assert pipeline.quarantine.bad == 0


def assert_same(a, b):
    assert (a.position, a.source, a.episode, a.step, a.gap_s) == (b.position, b.source, b.episode, b.step, b.gap_s)
    assert a.observation.instruction == b.observation.instruction
    for role in a.observation.images:
        np.testing.assert_array_equal(a.observation.images[role], b.observation.images[role])
    for x, y in ((a.action_TA, b.action_TA), (a.valid_T, b.valid_T), (a.observation.state, b.observation.state)):
        np.testing.assert_array_equal(x, y)


def test_a_sample_is_a_function_of_its_position(folder):
    first, second = one(folder, seed=5, cache_bytes=0), one(folder, seed=5)
    together = first.samples(range(100))
    for position in (99, 3, 50, 3):
        assert_same(second.sample(position), together[position])


def test_images_cannot_be_spoiled_by_a_consumer(folder):
    image = one(folder).sample(0).observation.images["front"]
    with pytest.raises(ValueError, match="read-only"):
        image[...] = 0


def test_the_cache_keeps_to_its_budget(folder):
    pipeline = one(folder, cache_bytes=10 * 16 * 16 * 3)
    pipeline.samples(range(92))
    assert pipeline.cache.held_bytes == 10 * 16 * 16 * 3


def test_history_is_in_seconds(tmp_path):
    folder = write(tmp_path / "slow", [make_episode("e", 40, every=(1, 3))])
    pipeline = one(folder, history_s=(-1.0, -0.25, 0.0))
    for sample in pipeline.samples(range(14)):
        i = sample.step
        steps = [max(i - 10, 0), max(i - 2, 0), i]  # 0.25 s is 2.5 ticks: the latest step at or before it, within half a tick
        assert i % 3 == 0 and sample.observation.offsets_s == (-1.0, -0.25, 0.0)
        assert [red(frame) for frame in sample.observation.images["front"]] == pytest.approx(steps, abs=2)
        assert [red(frame) for frame in sample.observation.images["wrist"]] == pytest.approx([s // 3 * 3 for s in steps], abs=2)
        np.testing.assert_array_equal(sample.observation.state, make_episode("e", 40).state[steps])


@pytest.mark.parametrize("recorded_hz", [Fraction(3), Fraction(5), Fraction(20), Fraction(30000, 1001), Fraction(50)])
def test_chunks_are_in_the_robots_rate(tmp_path, recorded_hz):
    episode = make_episode("e", 40, rate_hz=recorded_hz)
    pipeline = one(write(tmp_path / "d", [episode]), {"arm": replace(ROBOT, action=ROBOT.command)})
    for sample in pipeline.samples(range(40)):
        left_s = (40 - sample.step) / recorded_hz
        assert int(sample.valid_T.sum()) == min(4, int(left_s * ROBOT.rate_hz))
        want = resample(episode.action[sample.step :], ROBOT.command, recorded_hz, ROBOT.rate_hz, 4)
        np.testing.assert_allclose(sample.action_TA[sample.valid_T], want[sample.valid_T])


@pytest.mark.parametrize("rate_hz", [Fraction(3), Fraction(10), Fraction(30000, 1001), Fraction(50)])
def test_windows_of_mixed_rates_are_equal_in_seconds(tmp_path, rate_hz):
    """What is seen lies the asked time back, and the chunk reaches the asked time ahead, to within one tick, whatever the rate."""
    episode = make_episode("e", int(4 * rate_hz), rate_hz=rate_hz)
    ramp = np.tile(episode.time_s[:, None], (1, 4)) / 10  # each command is its own time
    folder = write(tmp_path / "d", [replace(episode, state=ramp, action=ramp)])
    pipeline = one(folder, {"arm": replace(ROBOT, action=ROBOT.command, horizon=8)}, history_s=(-0.9, -0.2, 0.0))
    tick_s, checked = 1 / float(rate_hz), 0
    for sample in pipeline.samples(range(episode.steps)):
        now_s = episode.time_s[sample.step]
        if now_s < 0.9:
            continue
        checked += 1
        seen_s = sample.observation.state[:, 0] * 10
        assert np.abs(seen_s - (now_s + np.array([-0.9, -0.2, 0.0]))).max() <= tick_s / 2 + 1e-6
        ahead_s = sample.action_TA[sample.valid_T, 0] * 10 - now_s
        np.testing.assert_allclose(ahead_s, (np.arange(8) / 10)[sample.valid_T], atol=tick_s)
        assert abs(sample.valid_T.sum() / 10 - min(0.8, episode.time_s[-1] + tick_s - now_s)) < 0.1 + 1e-6
    assert checked > episode.steps / 2


def test_loss_masks_of_short_and_very_long_episodes(tmp_path):
    """Lengths 1 and 3 (below the horizon of 4), and 100,000 steps with a frame every 1,000."""
    long = make_episode("long", 100_000, every=(1000, 1000))
    folder = write(tmp_path / "d", [make_episode("dot", 1), make_episode("short", 3), long])
    samples = one(folder, block=104).samples(range(104))
    sums = {name: sorted(int(s.valid_T.sum()) for s in samples if s.episode == name) for name in ("dot", "short", "long")}
    assert sums == {"dot": [1], "short": [1, 2, 3], "long": [4] * 100}
    last = make_episode("end", 1000, every=(999, 999))
    folder = write(tmp_path / "end", [last])
    assert sorted(int(s.valid_T.sum()) for s in one(folder, block=2).samples(range(2))) == [1, 4]
    with pytest.raises(SchemaError, match="steps >= 1"):
        write(tmp_path / "none", [replace(make_episode("a", 1), time_s=np.zeros(0), state=np.zeros((0, 4)), action=np.zeros((0, 4)))])


def test_sources_marked_so_carry_no_latent_codes(tmp_path):
    folders = [write(tmp_path / name, [make_episode("a", 10)]) for name in ("with", "without")]
    model = "ab12" * 16
    write_latents(Dataset.open(folders[0]), model, np.arange(20).reshape(10, 2))
    with pytest.raises(StatsMissing, match="If source 'without' is to have none, say `latents: false`"):
        Pipeline(Mixture.of(folders, val_fraction=0.0), ROBOTS, latents=model)
    (tmp_path / "m.yaml").write_text("val_fraction: 0\nsources: [{path: with}, {path: without, latents: false}]")
    mixture = Mixture.load(tmp_path / "m.yaml", tmp_path)
    samples = Pipeline(mixture, ROBOTS, latents=model, block=20).samples(range(20))
    assert {(s.source, s.latent_N is None) for s in samples} == {("with", False), ("without", True)}
    assert mixture.fingerprint()["without_latents"] == ["without"]


def test_encoding_by_shift_is_encoding(tmp_path):
    """The short way through `Targets.chunk` gives the bits of `Embodiment.encode`, negative zeros aside."""
    episode = make_episode("e", 30)
    pipeline = one(write(tmp_path / "d", [episode]))
    assert pipeline._feeds[0].targets._shift is not None
    for sample in pipeline.samples(range(30)):
        i = sample.step
        want = ROBOT.encode(episode.action[i : i + 4], episode.state[i])
        np.testing.assert_array_equal(sample.action_TA[: len(want)], want)


@pytest.mark.parametrize("options", [{}, {"history_s": (-0.3, 0.0)}, {"future_gap_s": (0.2, 0.6)}, {"cache_bytes": 0}], ids=str)
def test_samples_made_together_are_those_made_alone(tmp_path, options):
    """In one canvas, with others of all kinds: another size, another rate, no actions, a spoiled frame, NaN within reach of some chunks."""
    write(tmp_path / "a", [make_episode(f"e{i}", n, i) for i, n in enumerate((12, 2, 30))])
    large = tuple(jpeg(step, 24) for step in range(9))
    odd = replace(make_episode("large", 9), frames={camera: Frames(np.arange(9), large) for camera in ROBOT.cameras})
    write(tmp_path / "b", [make_episode("slow", 9, 4, rate_hz=Fraction(5)), odd])
    write(tmp_path / "c", [make_video("v", 6)], embodiment=None, supervision="none")
    spoil(tmp_path / "a", "e2", "wrist", [7])
    poke(tmp_path / "a", "action", 25, np.nan)
    mixture = Mixture.of([tmp_path / name for name in "abc"], val_fraction=0.0)
    pipeline = Pipeline(mixture, ROBOTS, seed=1, block=68, max_bad_rate=1.0, **options)
    ring, places = Ring(), pipeline.look_up(range(68))
    for _ in range(3):  # the first time, sizes are not known yet
        together, bad = pipeline.collect(places, ring.canvas())
        single = Pipeline(mixture, ROBOTS, seed=1, block=68, max_bad_rate=1.0, **options)
        for a, b in zip(together, map(single.sample, range(68)), strict=True):
            assert_same(a, b)
            assert (a.future is None) == (b.future is None) and a.gap_s == b.gap_s and a.latent_N is None
            for role in a.future or ():
                np.testing.assert_array_equal(a.future[role], b.future[role])
        assert {record.cause for record in bad} == {"altered", "nonfinite"}


def test_frame_pairs_are_the_asked_time_apart(tmp_path):
    folder = write(tmp_path / "d", [make_episode("long", 60), make_episode("tiny", 3)])
    pipeline = one(folder, future_gap_s=(0.5, 1.5), seed=2)
    gaps, steps = [], []
    for sample in pipeline.samples(range(600)):
        later = sample.step + round(sample.gap_s * 10)
        assert red(sample.future["wrist"]) == pytest.approx(later, abs=2) and sample.future["wrist"].ndim == 3
        if sample.episode == "tiny":  # shorter than any gap: its first and last
            assert (sample.step, later) == (0, 2)
        else:
            gaps.append(sample.gap_s)
            steps.append(sample.step)
    assert 0.45 <= min(gaps) <= 0.6 and 1.4 <= max(gaps) <= 1.55
    assert len({round(gap, 2) for gap in gaps}) == 11  # drawn per sample, not per run
    assert max(steps) >= 50 and np.bincount(steps).max() < 30  # nothing piles up at the end


def test_a_single_frame_makes_no_pair(tmp_path):
    folder = write(tmp_path / "d", [make_episode("long", 200), make_episode("dot", 1)])
    pipeline = one(folder, future_gap_s=(0.5, 0.5))
    assert {sample.episode for sample in pipeline.samples(range(201))} == {"long"}
    assert pipeline.quarantine.causes == {"short": 1}


def test_nothing_lies_ahead_of_the_last_frame_however_short_the_gap(tmp_path):
    folder = write(tmp_path / "d", [make_episode("a", 6)])
    pairs, goals = (one(folder, block=6, **{name: (0.05, 0.05)}).samples(range(6)) for name in ("future_gap_s", "goal_gap_s"))
    assert all(s.step < 5 and s.gap_s == pytest.approx(0.1) for s in pairs)
    assert sorted(s.step for s in goals) == list(range(6)) and any(s.future for s in goals)
    assert all(s.future is None for s in goals if s.step == 5)


def test_goals_leave_every_sample_where_it_is(tmp_path):
    """Those of pairs whose place was not exchanged; near an end, in a single frame, across a hole and without a clock there is no goal."""
    hole = make_episode("hole", 20)
    hole = replace(hole, time_s=hole.time_s + np.where(np.arange(20) >= 10, 30.0, 0.0))
    others = [make_episode("dot", 1), make_episode("tiny", 3), make_episode("clockless", 20)]
    folder = write(tmp_path / "d", [make_episode("long", 60), hole, *others])
    first = {e.id: row for row, e in enumerate(map(Dataset.open(folder).episode, range(5)))}
    steps = np.cumsum([0, *(Dataset.open(folder).steps_E)])
    poke(folder, "time_s", int(steps[first["clockless"]]) + 3, np.nan)
    plain, told = one(folder, seed=2, block=104), one(folder, seed=2, block=104, goal_gap_s=(0.5, 1.5))
    paired = one(folder, seed=2, block=104, future_gap_s=(0.5, 1.5), max_bad_rate=1.0)
    goals: dict[str, set[int]] = {}
    for want, got, pair in zip(*(each.samples(range(312)) for each in (plain, told, paired)), strict=True):
        assert (got.episode, got.step) == (want.episode, want.step)
        if got.future is None:
            continue
        goals.setdefault(got.episode, set()).add(got.step)
        assert red(got.future["wrist"]) == pytest.approx(got.step + round(got.gap_s * 10), abs=2)
        assert (pair.episode, pair.step, pair.gap_s) == (got.episode, got.step, got.gap_s)
    assert not told.quarantine.causes
    assert max(goals["long"]) in range(50, 55) and min(goals["long"]) < 5
    assert goals["tiny"] == {0} and set(goals) == {"long", "hole", "tiny"}
    assert 9 not in goals["hole"] and max(goals["hole"]) < 15
    with pytest.raises(UserError, match="one future"):
        one(folder, future_gap_s=(0.5, 1.5), goal_gap_s=(0.5, 1.5))


def test_video_without_a_robot(tmp_path):
    with ShardWriter(tmp_path / "v", DatasetInfo(name="v", supervision="none")) as writer:
        writer.add(make_video("a", 9))
    sample = one(tmp_path / "v").sample(0)
    assert sample.action_TA is None and sample.observation.state.shape == (1, 0) and not sample.valid_T.any()
    assert list(sample.observation.images) == ["front"] and sample.observation.embodiment == ""


def test_video_of_a_robot_keeps_its_name_and_horizon(tmp_path):
    episode = replace(make_episode("a", 9), supervision="none", state=None, action=None)
    write(tmp_path / "v", [episode], supervision="none")
    sample = one(tmp_path / "v").sample(0)
    assert sample.action_TA is None and sample.observation.state.shape == (1, 0)
    assert sample.observation.embodiment == "arm" and sample.valid_T.tolist() == [False] * 4


def test_paraphrases_are_drawn_by_position(tmp_path):
    episode = replace(make_episode("a", 50), instructions=(Span("open it", 0, 50), Span("pull", 0, 50)))
    pipeline = one(write(tmp_path / "d", [episode]), seed=1)
    texts = [sample.observation.instruction for sample in pipeline.samples(range(200))]
    assert 60 < texts.count("pull") < 140
    assert texts == [one(tmp_path / "d", seed=1).sample(p).observation.instruction for p in range(200)]


def test_held_out_episodes_are_never_trained_on(tmp_path):
    folder = write(tmp_path / "arms", [make_episode(f"e{i}", 4, i) for i in range(60)])
    mixture = Mixture.of([folder], val_fraction=0.2)
    train, val = (Pipeline(mixture, ROBOTS, split=split, block=4) for split in ("train", "val"))
    held = {f"e{i}" for i in range(60) if is_validation("arms", f"e{i}", 0.2)}
    assert {sample.episode for sample in val.samples(range(len(held) * 4))} == held and held
    assert {sample.episode for sample in train.samples(range(240 - len(held) * 4))} == {f"e{i}" for i in range(60)} - held


def test_a_wrong_source_is_refused_with_the_fix(tmp_path, folder):
    with pytest.raises(UnknownName, match=r"embodiment 'arm'. Choices: leg"):
        one(folder, {"leg": ROBOT})
    with pytest.raises(SchemaError, match=r"roles \['front', 'wrist'\]; 'arm' has \['front', 'top'\]"):
        one(folder, {"arm": replace(ROBOT, cameras=("front", "top"))})
    with pytest.raises(SchemaError, match="recorded the state"):
        one(folder, {"arm": replace(ROBOT, state=Space((Field("position", 3, "m"),)))})
    turned = Space((Field("position", 3, "rad"), Field("gripper", 1, "open01")))
    with pytest.raises(SchemaError, match="recorded actions"):
        one(folder, {"arm": replace(ROBOT, command=turned, action=turned)})
    with pytest.raises(UserError, match="rise to 0"):
        one(folder, history_s=(0.0, -1.0))
    with pytest.raises(UserError, match="future gap"):
        one(folder, future_gap_s=(0.0, 1.0))
    with pytest.raises(UserError, match="no val episodes in arms"):
        one(folder, split="val")


def spoil(folder, episode, camera, numbers, data=b"\xff\xd8 not a picture"):
    dataset = Dataset.open(folder)
    index = next(i for i in range(len(dataset)) if dataset.episode(i).id == episode)
    table = dataset.episode(index).cameras[camera]
    for number in numbers:
        with open(folder / f"{dataset.shard_names[int(table.shard[number])]}.tar", "r+b") as file:
            file.seek(int(table.offset[number]))
            file.write(data)


def test_a_bad_frame_is_counted_named_and_replaced_by_rule(folder):
    spoil(folder, "e3", "wrist", [7])
    pipeline = one(folder, max_bad_rate=0.1, block=46)
    samples = pipeline.samples(range(46))
    assert pipeline.quarantine.causes == {"altered": 1}
    record = pipeline.quarantine.records[0]
    assert (record.source, record.episode, record.step) == ("arms", "e3", 7)
    assert samples[record.position].episode != "e3" or samples[record.position].step != 7
    assert_same(one(folder, block=46).sample(record.position), samples[record.position])


def test_too_many_bad_frames_stop_the_run_with_a_list(folder):
    spoil(folder, "e3", "wrist", range(30))
    pipeline = one(folder)
    with pytest.raises(TooManyBad, match=r"1\d of \d+ samples are bad \(1\d altered\).*episode 'e3'") as error:
        for position in range(46):
            pipeline.sample(position)
    assert error.value.exit_code == 1


def poke(folder, name, row, value):
    """Overwrites one number of a column on disk."""
    path = folder / "shard-00000.columns"
    _, shape, offset = read_header(path)[0][name]
    with path.open("r+b") as file:
        file.seek(offset + 8 * row * (shape[1] if len(shape) > 1 else 1))
        file.write(np.float64(value).tobytes())


def test_data_that_no_writer_of_ours_made_is_still_checked(tmp_path, monkeypatch):
    """Another writer may store what ours refuses: a NaN, a picture that does not decode, a huge one."""
    monkeypatch.setattr("vla.data.writer.check_episode", lambda *args: None)
    episodes = {name: make_episode(name, 5) for name in ("action", "state", "broken", "huge")}
    cut = jpeg(1)[:200]
    big = simplejpeg.encode_jpeg(np.zeros((6000, 6000, 3), np.uint8))
    for name, data in (("broken", cut), ("huge", big)):
        spoiled = {**episodes[name].frames, "front": Frames(np.arange(5), (data,) * 5)}
        episodes[name] = replace(episodes[name], frames=spoiled)
    folder = write(tmp_path / "d", [*episodes.values(), make_episode("good", 80)])
    poke(folder, "action", 2, np.nan)
    poke(folder, "state", 5 + 1, np.inf)
    pipeline = one(folder, max_bad_rate=1.0, block=100)
    samples = pipeline.samples(range(100))
    found = {(record.cause, record.episode) for record in pipeline.quarantine.records}
    assert found == {("nonfinite", "action"), ("nonfinite", "state"), ("decode", "broken"), ("oversize", "huge")}
    assert {(r.episode, r.step) for r in pipeline.quarantine.records if r.cause == "nonfinite"} == {
        *(("action", step) for step in (0, 1, 2)),  # every chunk that holds it
        ("state", 1),
    }
    for sample in samples:
        assert np.isfinite(sample.action_TA).all() and np.isfinite(sample.observation.state).all()


@pytest.mark.parametrize("options", [{"history_s": (-0.2, 0.0)}, {"future_gap_s": (0.2, 0.4)}], ids=str)
def test_a_time_that_is_none_is_dropped_where_times_count(tmp_path, options):
    folder = write(tmp_path / "d", [make_episode("bad", 6), make_episode("good", 30)])
    poke(folder, "time_s", 3, np.nan)
    assert {s.episode for s in one(folder, block=36).samples(range(36))} == {"bad", "good"}  # a frame and its rows need no clock
    pipeline = one(folder, block=36, max_bad_rate=1.0, **options)
    assert {s.episode for s in pipeline.samples(range(36))} == {"good"}
    assert {(r.cause, r.episode) for r in pipeline.quarantine.records} == {("nonfinite", "bad")}


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "decode"),
        (b"\xff\xd8\xff", "decode"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "decode"),
        (jpeg(3)[:300], "decode"),
        (simplejpeg.encode_jpeg(np.zeros((6000, 6000, 3), np.uint8)), "oversize"),
    ],
    ids=["empty", "three bytes", "png", "cut", "huge"],
)
def test_images_that_are_no_jpeg_are_bad_by_cause(data, cause):
    """With a place to decode into or without: the same verdict, and nothing is written past the place."""
    room = np.zeros((16 * 16 * 3 + 64,), np.uint8)
    for out in (None, room[: 16 * 16 * 3].reshape(16, 16, 3)):
        with pytest.raises(BadSample) as error:
            decode_jpeg(data, out)
        assert error.value.cause == cause
    assert not room[16 * 16 * 3 :].any()


def test_nothing_but_bad_samples_ends_the_run(tmp_path):
    folder = write(tmp_path / "d", [make_episode("a", 5)])
    spoil(folder, "a", "front", range(5))
    with pytest.raises(Damaged, match="16 samples in a row are bad"):
        one(folder, max_bad_rate=1.0).sample(0)


def test_latent_codes_come_along(folder):
    dataset = Dataset.open(folder)
    codes = np.arange(46 * 2).reshape(46, 2)
    codes[5] = -1
    model = "ab12" * 16
    write_latents(dataset, model, codes, {"gap_s": 1.0})
    pipeline = one(folder, latents=model)
    first = {"e0": 0, "e1": 12, "e2": 13, "e3": 16}
    for sample in pipeline.samples(range(46)):
        row = first[sample.episode] + sample.step
        if row == 5:
            assert sample.latent_N is None
        else:
            assert sample.latent_N.tolist() == [2 * row, 2 * row + 1] and sample.latent_N.dtype == np.int64
    labelled = pipeline.at_anchor("arms", 20, gap_s=0.5)
    assert (labelled.episode, labelled.step, labelled.gap_s) == ("e3", 4, pytest.approx(0.5))
    assert labelled.latent_N.tolist() == [40, 41] and red(labelled.future["front"]) == pytest.approx(9, abs=2)
    assert pipeline.at_anchor("arms", 45, gap_s=0.5).gap_s == 0.0
    with pytest.raises(StatsMissing, match=r"it has \['ab12ab12ab12'\]. Run `vla label`"):
        one(folder, latents="cd34" * 16)
    with pytest.raises(Damaged, match="another model"):
        read_latents(dataset, "ab12ab12ab12" + "0" * 52)


@pytest.mark.parametrize(
    ("codes", "message"),
    [(np.zeros((45, 2), int), r"want integers \(46, N\)"), (np.zeros((46, 2)), "float64"), (np.full((46, 2), -2), "out of range")],
)
def test_wrong_latent_codes_are_refused(folder, codes, message):
    with pytest.raises(SchemaError, match=message):
        write_latents(Dataset.open(folder), "ab12" * 16, codes)


def test_damaged_latent_codes_are_refused(folder):
    dataset, model = Dataset.open(folder), "ab12" * 16
    path = write_latents(dataset, model, np.zeros((46, 2), np.int64))
    np.save(path, np.zeros((45, 2), np.int16))
    with pytest.raises(Damaged, match="46 anchors"):
        read_latents(dataset, model)
    path.write_bytes(b"\x93NUMPY")
    with pytest.raises(Damaged, match="does not load"):
        read_latents(dataset, model)
