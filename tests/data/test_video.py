from __future__ import annotations

import multiprocessing
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from simplejpeg import decode_jpeg, encode_jpeg

from vla.data import video
from vla.data.video import frame_times, image_at, images, images_at, jpegs_at, probe
from vla.errors import Damaged, UserError

from .videos import number_of, numbered, sequential, write_video

NTSC = Fraction(30000, 1001)
KINDS = {
    "b-frames 29.97": ("a.mp4", {"rate": NTSC, "options": {"bf": "3", "g": "24"}}),
    "open groups": ("a.mkv", {"options": {"bf": "3", "g": "24", "x264-params": "open-gop=1"}}),
    "one key frame": ("a.mp4", {"options": {"bf": "2", "g": "9999"}}),
    "intra refresh": ("a.mp4", {"options": {"x264-params": "intra-refresh=1:keyint=20"}}),
    "hevc": ("a.mp4", {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=30:bframes=3"}}),
    "vp9 in webm": ("a.webm", {"codec": "libvpx-vp9", "rate": NTSC, "options": {"g": "30", "deadline": "realtime", "cpu-used": "8"}}),
    "av1": ("a.mp4", {"codec": "libsvtav1", "options": {"g": "30", "preset": "12"}}),
    "mpeg4 in avi": ("a.avi", {"codec": "mpeg4", "options": {"g": "15"}}),
    "mpeg2 in ts": ("a.ts", {"codec": "mpeg2video", "options": {"g": "15", "bf": "2"}}),
    "4:4:4": ("a.mp4", {"pix_fmt": "yuv444p"}),
}


def make(tmp_path, name: str, frames=240):
    file, settings = KINDS[name]
    return write_video(tmp_path / file, frames, **settings)


@pytest.mark.parametrize("name", KINDS)
def test_random_frames_are_those_of_a_sequential_decoder(tmp_path, name):
    path, rng = make(tmp_path, name), np.random.default_rng(0)
    want = sequential(path)
    assert [number_of(image) for image in want] == list(range(240))
    times = frame_times(path)
    assert len(times) == 240 and (np.diff(times) > 0).all()
    numbers = rng.integers(0, 240, 60)
    for number, image in zip(numbers, images(path, numbers), strict=True):
        np.testing.assert_array_equal(image, want[number], err_msg=f"frame {number}")
    at = rng.uniform(0, 240 / probe(path).rate_hz - 0.002, 60)  # between frames: the last that began
    for when, image in zip(at, images_at(path, at), strict=True):
        assert number_of(image) == np.searchsorted(times, when + 0.001, side="right") - 1


def test_a_thousand_random_frames_in_any_order(tmp_path):
    path = make(tmp_path, "b-frames 29.97", 600)
    want, numbers = sequential(path), np.random.default_rng(1).integers(0, 600, 1000)
    wrong = [n for n, image in zip(numbers, images(path, numbers), strict=True) if not np.array_equal(image, want[n])]
    assert wrong == []
    assert [number_of(image) for image in images(path, np.arange(600))] == list(range(600))


def read_and_compare(path, want, seed):
    for number in np.random.default_rng(seed).integers(0, len(want), 60):
        np.testing.assert_array_equal(image_at(path, number / 30), want[number])


def test_single_frames_of_many_files_and_in_forked_processes(tmp_path):
    paths = [write_video(tmp_path / f"{i}.mp4", 60, options={"bf": "2", "g": "12"}) for i in range(video.KEPT_OPEN + 2)]
    want = sequential(paths[0])
    for _ in range(2):
        for path in paths:
            np.testing.assert_array_equal(image_at(path, 1.0), want[30])
    assert len(video._kept_open()) == video.KEPT_OPEN
    read_and_compare(paths[-1], want, 0)
    children = [multiprocessing.get_context("fork").Process(target=read_and_compare, args=(paths[-1], want, seed)) for seed in (1, 2)]
    for child in children:
        child.start()
    read_and_compare(paths[-1], want, 3)  # at the same time, on what was one open file
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    write_video(paths[-1], [numbered(7)] * 30)  # another file by the same name
    assert number_of(image_at(paths[-1], 0.5)) == 7
    with pytest.raises(Damaged, match="ends at 1"):
        image_at(paths[-1], 1.5)
    assert number_of(image_at(paths[-1], 0.5, size=(48, 64))) == 7
    with pytest.raises(UserError, match="no video file"):
        image_at(tmp_path / "gone.mp4", 0.0)


def test_a_frame_costs_its_group_and_not_the_file(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", 900, options={"g": "15", "bf": "0"})
    read = []
    packets = video._packets
    monkeypatch.setattr(video, "_packets", lambda *args: (read.append(packet) or packet for packet in packets(*args)))
    (image,) = images_at(path, [29.0])
    assert number_of(image) == 870
    assert len(read) < 40  # a group to open, one to reach the frame


def test_uneven_frames_are_shown_until_the_next(tmp_path):
    begins_ms = np.cumsum(np.random.default_rng(2).integers(5, 180, 100))
    begins_ms -= begins_ms[0]
    path = write_video(tmp_path / "a.mkv", 100, pts=begins_ms.tolist(), time_base=Fraction(1, 1000), options={"bf": "2", "g": "12"})
    np.testing.assert_allclose(frame_times(path), begins_ms / 1000, atol=1e-9)
    at = np.sort(np.random.default_rng(3).uniform(0, begins_ms[-1] / 1000, 200))
    got = [number_of(image) for image in images_at(path, at)]
    assert got == (np.searchsorted(begins_ms / 1000, at + 0.001, side="right") - 1).tolist()
    doubled = list(images_at(path, np.repeat(at[:5], 3)))
    assert [number_of(image) for image in doubled] == np.repeat(got[:5], 3).tolist()


def test_times_of_a_table_in_float32_hit_their_frames(tmp_path):
    for rate, file in ((NTSC, "a.mp4"), (Fraction(30), "b.webm"), (Fraction(50), "c.mp4")):
        codec = "libvpx-vp9" if file.endswith("webm") else "libx264"
        path = write_video(tmp_path / file, 200, codec, rate=rate, options={"g": "20"} | ({"cpu-used": "8"} if codec != "libx264" else {}))
        stamps = (np.arange(200) / float(rate)).astype(np.float32)
        assert [number_of(image) for image in images_at(path, stamps)] == list(range(200))


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_a_turned_video_comes_upright(tmp_path, degrees):
    path = write_video(tmp_path / "a.mp4", 10, rotation=degrees)
    facts = probe(path)
    assert (facts.height, facts.width) == ((48, 64) if degrees == 180 else (64, 48))
    (image,) = images(path, [7])
    assert number_of(np.rot90(image, -degrees // 90)) == 7
    (small,) = images_at(path, [0.0], size=(facts.height // 2, facts.width // 2))
    assert small.shape == (facts.height // 2, facts.width // 2, 3)


def test_a_mirrored_video_is_refused(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.set_display_rotation(0, hflip=True)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(0), format="rgb24")))
        container.mux(stream.encode())
    with pytest.raises(Damaged, match="mirrored"):
        list(images_at(path, [0.0]))


@pytest.mark.parametrize("shape", [(47, 65), (33, 97), (66, 33)])
def test_odd_sizes_keep_every_pixel(tmp_path, shape):
    pictures = [numbered(i, *shape) for i in range(12)]
    for file, codec, pix_fmt in (("a.mp4", "libx264", "yuv444p"), ("b.webm", "libvpx-vp9", "yuv420p")):
        path = write_video(tmp_path / file, pictures, codec, pix_fmt=pix_fmt)
        want = sequential(path)
        for number, image in enumerate(images(path, range(12))):
            assert image.shape == (*shape, 3)
            np.testing.assert_array_equal(image, want[number])


def test_colours_follow_the_declared_matrix_and_range(tmp_path):
    red = np.zeros((48, 64, 3), np.uint8)
    red[...] = 200, 40, 60
    for matrix, full in (("bt709", False), ("smpte170m", False), ("smpte170m", True)):
        params = f"colormatrix={matrix}:colorprim=bt709:transfer=bt709:fullrange={'on' if full else 'off'}"
        path = tmp_path / f"{matrix}{full}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=30, options={"x264-params": params, "crf": "4"})
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
            stream.codec_context.color_range = 2 if full else 1
            frame = av.VideoFrame.from_ndarray(red, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=1 if matrix == "bt709" else 5, dst_color_range=2 if full else 1)
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
        (image,) = images_at(path, [0.0])
        assert np.abs(image.astype(int) - red).max() <= 5, (matrix, full)
        (jpeg,) = jpegs_at(path, [0.0], quality=95)
        assert np.abs(decode_jpeg(jpeg).astype(int) - red).max() <= 8, (matrix, full)


CHART = np.array(
    [[200, 40, 60], [40, 180, 70], [50, 60, 200], [220, 200, 40], [60, 190, 200], [190, 70, 180], [30, 30, 30], [225, 225, 225]]
)
MATRICES = {"bt709": 1, "smpte170m": 5}


def charted(path, height, width, matrix: str | None, full: bool, rotation=0):
    """A video of eight patches of colour, two rows of four, that says (or, matrix None, does not say) how its colours are coded."""
    patch = np.full((2, 4, 1, 1, 3), CHART.reshape(2, 4, 1, 1, 3), np.uint8)
    rows, columns = np.arange(height) * 2 // height, np.arange(width) * 4 // width
    picture = np.ascontiguousarray(np.rot90(patch[rows[:, None], columns[None], 0, 0], rotation // 90))
    number = MATRICES[matrix or "smpte170m"]
    says = f"fullrange={'on' if full else 'off'}" + (f":colormatrix={matrix}" if matrix else "")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"x264-params": says, "crf": "4"})
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt = "yuv444p" if picture.shape[0] % 2 or picture.shape[1] % 2 else "yuv420p"
        stream.codec_context.color_range = 2 if full else 1
        if rotation:
            stream.set_display_rotation(-rotation)
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame = frame.reformat(format=stream.pix_fmt, dst_colorspace=number, dst_color_range=2 if full else 1)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", [*MATRICES, None])
@pytest.mark.parametrize("shape", [(96, 128, 0), (128, 96, 90), (96, 128, 180), (95, 129, 0), (96, 130, 0)], ids=str)
def test_a_jpeg_made_of_planes_is_that_made_of_rgb(tmp_path, matrix, full, shape):
    height, width, rotation = shape
    path = charted(tmp_path / "a.mp4", height, width, matrix, full, rotation)
    (frame,) = video.frames_at(path, [0.0])
    for short_side in (None, 64, 63):
        size = (height, width) if short_side is None else video.shrunk(frame, short_side)
        planes = video._jpeg_planes(frame, size)
        narrow = frame.format.name in ("yuv420p", "yuvj420p") and not (rotation and any(side % 2 for side in size))
        assert (planes is not None) == (narrow and matrix != "bt709" and (full or short_side is not None))
        (data,) = jpegs_at(path, [0.0], 95, short_side)
        got, want = decode_jpeg(data).astype(int), video.rgb(frame, size).astype(int)
        by_rgb = decode_jpeg(encode_jpeg(video.rgb(frame, size), quality=95, colorsubsampling="420")).astype(int)
        assert got.shape == want.shape == (*size, 3)
        assert np.median(np.abs(got - by_rgb)) <= 2 and np.abs((got - by_rgb).mean((0, 1))).max() <= 3  # FFmpeg's RGB is 2 short of green
        assert np.abs(got - want).mean() < 5  # nearly all of it where two colours meet
        centres = ((2 * np.arange(2) + 1) * size[0] // 4)[:, None], ((2 * np.arange(4) + 1) * size[1] // 8)[None]
        assert np.abs(got[centres].reshape(8, 3) - CHART).max() <= (7 if planes is None else 5)


def test_a_jpeg_keeps_the_edges_of_odd_sizes(tmp_path):
    pictures = [numbered(5, 47, 65)]
    path = write_video(tmp_path / "a.webm", pictures, "libvpx-vp9")
    (frame,) = video.frames_at(path, [0.0])
    for short_side in (None, 41, 40):
        (data,) = jpegs_at(path, [0.0], 95, short_side)
        size = (47, 65) if short_side is None else video.shrunk(frame, short_side)
        want = video.rgb(frame, size).astype(int)
        assert decode_jpeg(data).shape == want.shape
        assert np.abs(decode_jpeg(data)[:, -1] - want[:, -1]).max() <= 12 and np.abs(decode_jpeg(data)[-1] - want[-1]).max() <= 12
        assert short_side is None or video._jpeg_planes(frame, size) is not None


def test_jpegs_hold_the_same_frames(tmp_path):
    path = write_video(tmp_path / "a.mp4", 40, rotation=90)
    at = np.arange(40) / 30
    for jpeg, image in zip(jpegs_at(path, at), images_at(path, at), strict=True):
        assert decode_jpeg(jpeg).shape == image.shape == (64, 48, 3)
        assert np.abs(decode_jpeg(jpeg).astype(int) - image).mean() < 4
    (half,) = jpegs_at(path, [1.0], short_side=24)
    assert decode_jpeg(half).shape == (32, 24, 3)
    (small,) = images_at(path, [1.0], size=(32, 24))
    assert np.abs(decode_jpeg(half).astype(int) - small).mean() < 5
    blocks = np.asarray(next(images_at(path, [1.0]))).reshape(32, 2, 24, 2, 3).mean((1, 3))
    assert np.abs(small - blocks).mean() < 4  # every pixel counts, none is skipped
    wide = write_video(tmp_path / "w.mp4", [numbered(0, 48, 86)])
    assert [decode_jpeg(next(jpegs_at(wide, [0.0], short_side=side))).shape for side in (24, 23)] == [(24, 44, 3), (23, 41, 3)]
    (same,) = jpegs_at(path, [1.0], short_side=480)
    assert decode_jpeg(same).shape == (64, 48, 3)


def test_a_video_shorter_than_its_table_is_refused_and_a_longer_one_is_not(tmp_path):
    path = write_video(tmp_path / "a.mp4", 95)
    assert len(list(images_at(path, np.arange(95) / 30))) == 95
    claimed = images_at(path, np.arange(100) / 30)
    assert [number_of(next(claimed)) for _ in range(95)] == list(range(95))
    with pytest.raises(Damaged, match=r"no frame at 3\.167 s; the video ends at 3\.167 s"):
        next(claimed)
    with pytest.raises(Damaged, match="frame 95 of 95"):
        images(path, [3, 95])
    assert [number_of(image) for image in images_at(path, [0.0, 1.0])] == [0, 30]


def test_a_file_cut_short_gives_what_is_there_and_names_the_rest(tmp_path):
    path = write_video(tmp_path / "a.mkv", 200, options={"g": "20"})
    want = sequential(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    decoded, at = [], np.arange(200) / 30
    with pytest.raises(Damaged, match=r"a\.mkv"):
        for image in images_at(path, at):
            decoded.append(image)
    assert 60 < len(decoded) < 200
    assert all(np.array_equal(image, want[i]) for i, image in enumerate(decoded))


def test_a_broken_group_is_refused_and_its_neighbours_are_exact(tmp_path):
    path = write_video(tmp_path / "a.mp4", 200, options={"g": "20", "bf": "0", "crf": "10"})
    want = sequential(path)
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    offset, size = packets[66]
    data[offset + 4 : offset + size] = bytes(size - 4)  # frame 66: a length, then zeros
    path.write_bytes(data)
    refused, rng = set(), np.random.default_rng(4)
    for number in rng.permutation(200).tolist():
        try:
            (image,) = images(path, [number])
        except Damaged as error:
            assert "does not decode" in str(error)
            refused.add(number)
        else:
            np.testing.assert_array_equal(image, want[number], err_msg=str(number))
    assert refused and refused <= set(range(66, 80))


def test_a_file_that_begins_within_a_group(tmp_path):
    whole = write_video(tmp_path / "whole.mkv", 90, options={"g": "30", "bf": "0"})
    want, path = sequential(whole), tmp_path / "cut.mkv"
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            if number >= 10:  # the first key frame, and nine more, are lost
                packet.stream = stream
                target.mux(packet)
    for number in (30, 45, 89):
        (image,) = images_at(path, [(number - 10) / 30])
        np.testing.assert_array_equal(image, want[number])
    with pytest.raises(Damaged, match="does not decode"):
        list(images_at(path, [0.2]))


def test_what_is_no_video_is_refused_unread(tmp_path):
    target = write_video(tmp_path / "secret.mp4", 5)
    hostile = {
        "playlist.mp4": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n" + str(target).encode() + b"\n#EXT-X-ENDLIST\n",
        "concat.mp4": b"ffconcat version 1.0\nfile " + str(target).encode() + b"\n",
        "text.mp4": b"not a video\n" * 100,
        "empty.mp4": b"",
        "picture.mp4": struct.pack(">8sI", b"\x89PNG\r\n\x1a\n", 13) + b"IHDR" + struct.pack(">II", 60000, 60000) + bytes(20),
    }
    for name, data in hostile.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(Damaged, match=name):
            list(images_at(tmp_path / name, [0.0]))
    for name in (f"concat:{target}", f"file:{target}", "http://127.0.0.1:9/a.mp4", tmp_path):
        with pytest.raises(UserError, match="no video file"):
            list(images_at(name, [0.0]))
    odd = write_video(tmp_path / "a.mp4", 3).rename(tmp_path / "concat:b.mp4")
    assert number_of(next(images_at(odd, [0.0]))) == 0


def test_oversize_frames_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", 3)
    monkeypatch.setattr(video, "MAX_PIXELS", 1000)
    with pytest.raises(Damaged, match="48 x 64"):
        next(images_at(path, [0.0]))
    monkeypatch.setattr(video, "MAX_PIXELS", 48 * 64)
    assert number_of(next(images_at(path, [0.0]))) == 0
    monkeypatch.setattr(video, "MAX_FRAMES", 2)
    with pytest.raises(Damaged, match="more than 2 frames"):
        frame_times(path)


def test_times_must_be_times(tmp_path):
    path = write_video(tmp_path / "a.mp4", 3)
    for times in ([np.nan], [np.inf], [[0.0]]):
        with pytest.raises(UserError, match="finite seconds"):
            next(images_at(path, times))
    assert list(images_at(path, [])) == []


@pytest.mark.parametrize("name", ["b-frames 29.97", "open groups", "vp9 in webm", "mpeg4 in avi", "mpeg2 in ts"])
def test_whatever_is_damaged_ends_in_frames_or_an_error_of_ours(tmp_path, name):
    path, rng = make(tmp_path, name, 40), np.random.default_rng(6)
    data, outcomes = path.read_bytes(), {"frames": 0, "refused": 0}
    for trial in range(40):
        spoiled = bytearray(data)
        for _ in range(int(rng.integers(1, 6))):  # anywhere, or in the headers
            spoiled[int(rng.integers(len(data) if trial % 2 else min(len(data), 1500)))] = int(rng.integers(256))
        path.write_bytes(spoiled[: int(rng.integers(len(data)))] if trial % 3 == 2 else spoiled)
        for read in (lambda: [probe(path)], lambda: frame_times(path), lambda: images_at(path, rng.uniform(0, 1.4, 4))):
            try:
                found = list(read())
            except UserError as error:
                assert path.name in str(error)
                outcomes["refused"] += 1
            else:
                assert all(image.ndim == 3 for image in found if isinstance(image, np.ndarray))
                outcomes["frames"] += 1
    assert min(outcomes.values()) >= 10
