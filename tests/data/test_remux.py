"""Packets of a source that go into shards as they are, and sources whose packets may not."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest

from vla.data.gop import Gop, packet_table
from vla.data.remux import remuxed
from vla.errors import Damaged

from .videos import number_of, sequential, write_video

PLAIN = {"g": "12", "bf": "0"}


def decoded(mp4: bytes, number: int) -> np.ndarray:
    table = packet_table(mp4)
    rows = range(int(table.key[number]), number + 1)
    return Gop(table.codec, table.head, tuple(mp4[table.start[i] : table.start[i] + table.size[i]] for i in rows)).decode()


@pytest.mark.parametrize("file", ["a.mp4", "a.mkv"])
def test_packets_that_fit_are_taken_as_they_are(tmp_path, file):
    path = write_video(tmp_path / file, 60, rate=Fraction(30000, 1001), options=PLAIN)
    want, at = sequential(path), (np.arange(60) + 0.5) * 1001 / 30000
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    whole = remuxed(path, at)
    assert whole is not None and remuxed(path, at) == whole
    table = packet_table(whole)
    assert [whole[start : start + size] for start, size in zip(table.start, table.size, strict=True)] == packets
    for number in (0, 11, 12, 37, 59):
        np.testing.assert_array_equal(decoded(whole, number), want[number])
    part = remuxed(path, at[24:41])
    assert part is not None and [number_of(decoded(part, i)) for i in range(17)] == list(range(24, 41))
    assert remuxed(path, at, short_side=48) == whole


def test_what_does_not_fit_is_left_to_the_encoder(tmp_path):
    path, at = write_video(tmp_path / "a.mp4", 60, options=PLAIN), (np.arange(60) + 0.5) / 30
    assert remuxed(path, at[::2]) is None  # half the frames
    assert remuxed(path, at[5:]) is None  # from within a group
    assert remuxed(path, np.repeat(at, 2)) is None  # every frame twice
    assert remuxed(path, at, short_side=47) is None
    assert remuxed(path, []) is None
    others = {
        "fits.mp4": {"options": {"g": "16", "keyint_min": "16", "sc_threshold": "0", "bf": "0"}},
        "b.mp4": {"options": {"g": "12", "bf": "2"}},
        "long.mp4": {"options": {"g": "17", "keyint_min": "17", "sc_threshold": "0", "bf": "0"}},
        "refresh.mp4": {"options": {"bf": "0", "x264-params": "intra-refresh=1:keyint=20"}},
        "turned.mp4": {"options": PLAIN, "rotation": 90},
        "other.mp4": {"codec": "mpeg4", "options": {"g": "12"}},
        "stream.ts": {"options": PLAIN},
    }
    for file, settings in others.items():
        other = write_video(tmp_path / file, 70, **settings)
        assert (remuxed(other, (np.arange(70) + 0.5) / 30) is None) == (file != "fits.mp4"), file


def test_colours_that_only_the_container_declares_are_not_lost(tmp_path):
    path = write_video(tmp_path / "a.mp4", 12, options=PLAIN)
    at, said = (np.arange(12) + 0.5) / 30, tmp_path / "said.mkv"
    with av.open(str(path)) as source, av.open(str(said), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        stream.codec_context.color_range = 2
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    shown = sequential(said)[11]
    assert not np.array_equal(shown, sequential(path)[11])
    assert remuxed(said, at) is None and remuxed(path, at) is not None


def test_a_frame_that_does_not_decode_is_named(tmp_path):
    path, at = write_video(tmp_path / "a.mp4", 60, options={**PLAIN, "crf": "10"}), (np.arange(60) + 0.5) / 30
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    offset, size = packets[30]
    data[offset + 4 : offset + size] = bytes(size - 4)
    path.write_bytes(data)
    with pytest.raises(Damaged, match=r"a\.mp4: the frame at 1\.\d+ s does not decode"):
        remuxed(path, at)
    assert remuxed(path, np.append(at, 2.1)) is None  # more than there is: for who reads frames to name
