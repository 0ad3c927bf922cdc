"""A raw episode and a card give an episode, or the cause why not: pictures, times, words, filters."""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from tests.convert.sources import CARD, card, episode, jpeg, picture
from vla.convert.fields import CAUSES, BadEpisode
from vla.convert.mapping import Mapper, check_against
from vla.convert.pictures import Encoding
from vla.convert.raw import Encoded, Feature, Pixels, RawEpisode
from vla.errors import SchemaError
from vla.types import Span

STEP = np.arange(6)


def mapped(raw: RawEpisode, encoding: Encoding | None = None, **changes):
    return Mapper(card(**changes), encoding).episode(raw)


def with_pictures(data, **changes) -> RawEpisode:
    return episode(pictures={"image": Encoded(STEP[: len(data)], data)}, **changes)


def camera(**words) -> dict:
    return {"cameras": {"front": {"from": "image", **words}}}


def png(image: np.ndarray | Image.Image) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format="PNG")
    return buffer.getvalue()


def refused(raw: RawEpisode, cause: str, **changes) -> str:
    with pytest.raises(BadEpisode) as caught:
        mapped(raw, **changes)
    assert caught.value.cause == cause and cause in CAUSES
    return str(caught.value)


def test_an_episode_is_what_the_card_says():
    raw = episode(2)
    found = mapped(raw).episode
    assert (found.id, found.embodiment, found.rate_hz, found.licence) == ("e0002", "arm", Fraction(10), "CC0-1.0")
    np.testing.assert_array_equal(found.state, raw.columns["state"])
    np.testing.assert_array_equal(found.action, raw.columns["action"])
    np.testing.assert_allclose(found.time_s, STEP / 10)
    assert found.instructions == (Span("do 2", 0, 6),) and found.info == {"success": True}
    assert found.frames["front"].jpeg == tuple(raw.pictures["image"].data), "a good JPEG is kept byte for byte"


def test_pngs_and_arrays_become_jpegs():
    want = picture(3)
    for raw in (with_pictures([png(want)] * 6), episode(pictures={"image": Pixels(STEP, [want] * 6)})):
        image = simplejpeg.decode_jpeg(mapped(raw).episode.frames["front"].jpeg[0])
        assert np.abs(image.astype(int) - want).mean() < 2
    grey = np.full((6, 20, 20), 77, np.uint8)
    image = simplejpeg.decode_jpeg(mapped(episode(pictures={"image": Pixels(STEP, list(grey))})).episode.frames["front"].jpeg[0])
    assert image.shape == (20, 20, 3) and np.abs(image.astype(int) - 77).max() <= 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"rotate": 180}, lambda image: image[::-1, ::-1]),
        ({"rotate": 90}, lambda image: np.rot90(image, -1)),  # clockwise
        ({"flip": "horizontal"}, lambda image: image[:, ::-1]),
        ({"rotate": 90, "flip": "vertical"}, lambda image: np.rot90(image, -1)[::-1]),
        ({"crop": [0, 0, 16, 20]}, lambda image: image[:16, :20]),
        ({"colour": "bgr"}, lambda image: image[..., ::-1]),
    ],
    ids=["half turn", "quarter turn", "mirrored", "turned and mirrored", "cropped", "bgr"],
)
def test_pictures_are_turned_as_the_card_says(words, expected):
    frames = mapped(episode(), **camera(**words)).episode.frames["front"]
    image = simplejpeg.decode_jpeg(frames.jpeg[2])
    want = expected(picture(2))
    assert image.shape == want.shape and np.abs(image.astype(int) - want).mean() < 6


def test_pictures_are_shrunk_in_proportion_and_never_enlarged():
    small = mapped(episode(), Encoding(image_size=12)).episode.frames["front"].jpeg[0]
    assert simplejpeg.decode_jpeg(small).shape == (12, 16, 3)
    same = mapped(episode(), Encoding(image_size=24)).episode.frames["front"].jpeg[0]
    assert same == episode().pictures["image"].data[0]


def exif(orientation: int) -> bytes:
    """A JPEG with an EXIF block that states an orientation, written byte by byte."""
    tiff = b"MM\0*" + struct.pack(">IHHHIHH", 8, 1, 0x0112, 3, 1, orientation, 0) + bytes(4)
    block = b"Exif\0\0" + tiff
    return b"\xff\xd8\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg(picture(0))[2:]


def test_a_cameras_note_of_how_it_was_held():
    assert Image.open(io.BytesIO(exif(6))).getexif()[0x0112] == 6  # Pillow reads what we wrote
    assert "exif: apply" in refused(with_pictures([exif(6)] * 6), "image")
    turned = mapped(with_pictures([exif(6)] * 6), **camera(exif="apply")).episode.frames["front"].jpeg[0]
    want = np.rot90(picture(0), -1)
    assert np.abs(simplejpeg.decode_jpeg(turned).astype(int) - want).mean() < 3
    left = mapped(with_pictures([exif(6)] * 6), **camera(exif="ignore")).episode.frames["front"].jpeg[0]
    assert simplejpeg.decode_jpeg(left).shape == picture(0).shape
    assert mapped(with_pictures([exif(1)] * 6)).episode.frames["front"].jpeg[0] == exif(1)


def cmyk() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(0)).convert("CMYK").save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()


def test_unusual_colours_are_refused_or_normalised_as_declared():
    deep = np.full((8, 8), 0x1234, np.uint16)
    assert "colour: cmyk" in refused(with_pictures([cmyk()] * 6), "image")
    image = simplejpeg.decode_jpeg(mapped(with_pictures([cmyk()] * 6), **camera(colour="cmyk")).episode.frames["front"].jpeg[0])
    assert np.abs(image.astype(int) - picture(0)).mean() < 6
    assert "16" in refused(with_pictures([png(Image.fromarray(deep))] * 6), "image")
    image = simplejpeg.decode_jpeg(
        mapped(with_pictures([png(Image.fromarray(deep))] * 6), **camera(bits=16)).episode.frames["front"].jpeg[0]
    )
    assert np.abs(image.astype(int) - 0x12).max() <= 1
    assert "transparent" in refused(with_pictures([png(np.zeros((8, 8, 4), np.uint8))] * 6), "image")


def huge_png() -> bytes:
    """A PNG that claims 30,000 x 30,000 pixels and holds none."""
    head = png(np.zeros((1, 1, 3), np.uint8))
    return head[:16] + struct.pack(">II", 30_000, 30_000) + head[24:]


@pytest.mark.parametrize(
    "data",
    [b"", b"GIF89a", jpeg(picture(0))[:400], jpeg(picture(0))[:-200] + bytes(200), b"\xff\xd8\xff\xd9", huge_png(), png(picture(0))[:60]],
    ids=["empty", "gif", "cut", "zeroed", "hollow", "huge", "cut-png"],
)
def test_a_picture_that_does_not_decode_is_named(data):
    good = jpeg(picture(0))
    assert "camera 'front' (image), picture 4" in refused(with_pictures([good, good, good, good, data, good]), "image")


def test_sparse_pictures_keep_their_steps():
    raw = episode(pictures={"image": Encoded(np.array([0, 2, 4]), [jpeg(picture(i)) for i in (0, 2, 4)])})
    assert mapped(raw).episode.frames["front"].step.tolist() == [0, 2, 4]
    assert mapped(episode(), **camera(every=4)).episode.frames["front"].step.tolist() == [0, 4]
    wrong = episode(pictures={"image": Encoded(np.array([0, 2, 9]), [b""] * 3)})
    assert "steps 0..9 of 6" in refused(wrong, "schema")


def test_missing_things_are_named_and_never_filled():
    assert "camera 'front' (image) is missing" in refused(episode(pictures={}), "schema")
    assert "column 'state' is missing" in refused(episode(columns={"action": np.zeros((6, 4))}), "schema")
    short = {**episode().columns, "state": np.zeros((5, 3))}
    assert "expected numbers at 6 steps" in refused(episode(columns=short), "schema")
    objects = {**episode().columns, "state": np.array(["a"] * 6)}
    assert "expected numbers" in refused(episode(columns=objects), "schema")


@pytest.mark.parametrize(
    ("time_s", "cause", "message"),
    [
        ([0, 0.1, 0.1, 0.3, 0.4, 0.5], "time", "does not rise at step 2"),
        ([0, 0.1, 0.2, 0.15, 0.4, 0.5], "time", "does not rise at step 3"),
        ([0, 0.1, np.nan, 0.3, 0.4, 0.5], "nonfinite", "time of step 2"),
        (np.arange(6) / 30, "time", "runs at 30 Hz; the card says 10"),
        ([0, 0.1], "schema", "(2,) times for 6 steps"),
    ],
    ids=["still", "back", "nan", "rate", "short"],
)
def test_a_clock_that_is_no_clock_is_refused(time_s, cause, message):
    assert message in refused(episode(time_s=np.asarray(time_s, np.float64)), cause)


@pytest.mark.parametrize("kind", [np.uint32, np.uint64, np.int64])
def test_a_clock_of_whole_numbers_that_goes_back_before_its_start_is_refused(kind):
    """Unsigned, the difference to the first was a leap forward, and the clock rose."""
    stamps = {**episode().columns, "stamp": (1000 + np.array([0, 100, 200, 300, 400, -50])).astype(kind)}
    assert "does not rise at step 5" in refused(episode(columns=stamps), "time", time={"from": "stamp", "unit": "ms"})


def test_clocks():
    jittered = 5.0 + np.array([0, 0.1, 0.21, 0.29, 0.4, 0.5])
    np.testing.assert_allclose(mapped(episode(time_s=jittered)).episode.time_s, jittered - 5)
    stamps = {**episode().columns, "stamp": 10**18 + np.arange(6) * 10**8 + 7}  # float64 would lose the 7 and more
    found = mapped(episode(columns=stamps), time={"from": "stamp", "unit": "ns"}).episode.time_s
    np.testing.assert_allclose(found, STEP / 10, atol=1e-12)
    np.testing.assert_allclose(mapped(episode(time_s=np.zeros(6)), time={"by_rate": True}).episode.time_s, STEP / 10)
    slow = replace(episode(time_s=np.arange(6) / 29.97), rate_hz=Fraction(30000, 1001))
    assert mapped(slow, rate_hz=Fraction(30000, 1001).__str__()).episode.rate_hz == Fraction(30000, 1001)


def test_words():
    each = episode(texts={"task": ["open "] * 2 + ["close"] * 4, "more": ["\0"], "third": ["shut it"]})
    assert mapped(each).episode.instructions == (Span("open", 0, 2), Span("close", 2, 6))
    first = mapped(each, instruction={"first_of": ["more", "third", "task"]}).episode.instructions
    assert first == (Span("shut it", 0, 6),)
    both = mapped(each, instruction={"all_of": ["task", "more", "third"]}).episode.instructions
    assert both == (Span("open", 0, 2), Span("close", 2, 6), Span("shut it", 0, 6))
    assert mapped(each, instruction={"text": "fixed"}).episode.instructions == (Span("fixed", 0, 6),)
    named = mapped(episode(texts={"task": ["pick_up_cup"]}), instruction={"from": "task", "replace": {"_": " "}}).episode
    assert named.instructions == (Span("pick up cup", 0, 6),)
    codes = np.zeros((6, 9), np.int32)
    codes[:, :5] = [ord(letter) for letter in "später"[:5]]
    spelt = mapped(episode(columns={**episode().columns, "codes": codes}), instruction={"from": "codes", "codes": True}).episode
    assert spelt.instructions == (Span("späte", 0, 6),)


def test_reasoning_is_mapped_like_words_and_may_be_missing_at_steps():
    said = episode(texts={"task": ["open"], "plan": ["", "reach_it", "reach_it", "pull", "pull", ""], "none": ["", "", "", "", "", ""]})
    found = mapped(said, reasoning={"from": "plan", "replace": {"_": " "}}, drop={"first_steps": 1}).episode
    assert found.reasoning == (Span("reach it", 0, 2), Span("pull", 2, 4)) and found.instructions == (Span("open", 0, 5),)
    assert mapped(said).episode.reasoning == ()
    assert "no reasoning in none" in refused(said, "language", reasoning={"from": "none"})
    assert mapped(said, reasoning={"from": "none", "missing": "empty"}).episode.reasoning == ()
    assert mapped(said, reasoning={"from": "none", "missing": "drop"}).dropped == {"episodes: no reasoning": 1}
    assert "plan" in card(reasoning={"from": "plan"}).wanted
    with pytest.raises(SchemaError, match="reasoning: what is to be said at a step is one text: give `from` or `first_of`"):
        card(reasoning={"text": "think"})


def test_no_words():
    silent = episode(texts={"task": [""]})
    assert "no instruction in task" in refused(silent, "language")
    gone = mapped(silent, instruction={"from": "task", "missing": "drop"})
    assert gone.episode is None and gone.dropped == {"episodes: no instruction": 1}
    assert mapped(silent, instruction={"from": "task", "missing": "empty"}).episode.instructions == (Span("", 0, 6),)
    assert "UTF-8" in refused(episode(texts={"task": [b"\xff\xfe".decode("utf-8", "surrogateescape")]}), "language")
    assert "20000 characters" in refused(episode(texts={"task": ["x" * 20_000]}), "language")


def test_what_is_left_out_is_counted_and_the_rest_keeps_together():
    still = {**episode().columns, "action": np.concatenate([np.zeros((6, 3)), np.ones((6, 1))], axis=1)}
    still["action"][[1, 2, 4], 0] = 0.1
    drop = {
        "first_steps": 1,
        "idle": {"fields": ["hand"]},
        "steps": [{"column": "is_last", "equals": True, "why": "no action there"}],
    }
    raw = episode(columns=still, time_s=np.array([0, 0.1, 0.2, 0.3, 0.4, 0.5]))
    found = mapped(raw, drop=drop)
    assert found.dropped == {"steps: first of the episode": 1, "steps: no action there": 1, "steps: idle": 1}
    np.testing.assert_array_equal(found.episode.action, still["action"][[1, 2, 4]])
    np.testing.assert_allclose(found.episode.time_s, [0, 0.1, 0.2])  # the time of the dropped step is closed up
    assert found.episode.frames["front"].step.tolist() == [0, 1, 2]
    assert found.episode.frames["front"].jpeg[2] == raw.pictures["image"].data[4]


def test_episodes_left_out_by_a_fact():
    drop = {"episodes": [{"column": "success", "equals": False, "why": "failures"}]}
    assert mapped(episode(0), drop=drop).dropped == {"episodes: failures": 1}
    assert mapped(episode(1), drop=drop).episode is not None
    short = mapped(episode(1), drop={"shorter_than": 7})
    assert short.episode is None and short.dropped == {"episodes: shorter than 7 steps": 1}
    empty = mapped(episode(0, steps=1, pictures={"image": Encoded(np.arange(1), [jpeg(picture(0))])}), drop={"last_steps": 1})
    assert empty.episode is None


def test_the_last_step_goes_where_nothing_follows_it():
    words = {"hand": {"from": "state", "difference": True}, "gripper": CARD["action"]["gripper"]}
    raw = episode()
    found = mapped(raw, action=words)
    assert found.dropped == {"steps: the last, which nothing follows": 1} and found.episode.steps == 5
    np.testing.assert_allclose(found.episode.action[:, :3], np.diff(raw.columns["state"], axis=0))
    np.testing.assert_array_equal(found.episode.action[:, 3], raw.columns["action"][:5, 3])


def test_a_card_is_compared_with_the_source_before_it_is_read():
    features = [
        Feature("state", "column", "float64", (3,)),
        Feature("action", "column", "float64", (4,)),
        Feature("task", "text"),
        Feature("image", "pictures"),
        Feature("depth", "pictures"),
    ]
    assert check_against(card(), features) == ["depth"]
    assert check_against(card(unused={"depth": "colour alone"}), features) == []
    with pytest.raises(SchemaError, match="no 'images'.*Near it: image"):
        check_against(card(**camera(**{"from": "images"})), features)
    with pytest.raises(SchemaError, match="'task' is a text, not pictures"):
        check_against(card(**camera(**{"from": "task"})), features)
    floats = [Feature("image", "column", "float32", (24, 32, 3)) if f.name == "image" else f for f in features]
    with pytest.raises(SchemaError, match=r"'image' holds float32 of 24 x 32 x 3; pictures are uint8 \(0..255\). Write them as uint8"):
        check_against(card(), floats)
    narrow = [Feature("action", "column", "float64", (3,)) if f.name == "action" else f for f in features]
    with pytest.raises(SchemaError, match="action: gripper: 'action' has 3 numbers"):
        check_against(card(), narrow)
