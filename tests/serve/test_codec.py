"""Messages as they come off the wire: what is lawful arrives bit for bit, and everything else is refused before it is built."""

from __future__ import annotations

import base64
import io
import json
import tracemalloc

import msgpack
import numpy as np
import pytest

import vla_client
from vla.serve.codec import DTYPES, from_json, from_npy, pack, to_json, to_npy, unpack
from vla.serve.measure import MAX_DEPTH, MAX_ITEMS
from vla.serve.wire import KINDS, Compressed, Refusal

ARRAYS = [np.arange(24).reshape(2, 3, 4).astype(dtype) for dtype in DTYPES] + [np.zeros((0, 3), "<f4"), np.array(1.5)]


def same(a, b) -> bool:
    return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype.str}{a.shape}")
def test_arrays_arrive_bit_for_bit_in_every_encoding(array):
    assert same(array, unpack(vla_client.pack({"x": array}))["x"])
    assert same(array, vla_client.unpack(pack({"x": array}))["x"])
    assert same(array, unpack(pack({"x": array}, text_keys=True))["x"])
    assert same(array, from_json(to_json({"x": array}))["x"])
    assert same(array, from_npy(to_npy(array)))


def test_the_client_and_the_server_allow_the_same_types():
    assert DTYPES == vla_client.codec.DTYPES


def test_numpy_scalars_become_numbers():
    said = unpack(vla_client.pack({"a": np.float32(0.5), "b": np.int64(3), "c": np.bool_(True)}))
    assert said == {"a": 0.5, "b": 3, "c": True}


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth - 1):
        value = [value]
    return value


def array_said(**changes) -> bytes:
    good = {"__ndarray__": True, "data": bytes(12), "dtype": "<f4", "shape": [3]}
    return msgpack.packb({"x": {**good, **changes}})


HOSTILE = {
    "nothing": b"",
    "half": msgpack.packb({"x": "a" * 40})[:20],
    "more": msgpack.packb(1) + b"\x00",
    "invalid byte": b"\xc1",
    "extension": msgpack.packb(msgpack.ExtType(1, b"x")),
    "timestamp": msgpack.packb(msgpack.Timestamp(1)),
    "too deep": msgpack.packb(nested(MAX_DEPTH + 1)),
    "a million deep": b"\x91" * 1_000_000 + b"\x90",
    "many items": msgpack.packb([0] * (MAX_ITEMS + 1)),
    "a promised giant list": b"\xdd\xff\xff\xff\xff",
    "a promised giant map": b"\xdf\xff\xff\xff\xff",
    "a promised giant text": b"\xdb\xff\xff\xff\xff",
    "keys that are numbers": msgpack.packb({1: 2}),
    "text that is no UTF-8": b"\xa2\xff\xff",
    "objects": array_said(dtype="|O"),
    "records": array_said(dtype="|V4"),
    "complex": array_said(dtype="<c8"),
    "big-endian": array_said(dtype=">f4"),
    "a dtype that is a list": array_said(dtype=[["a", "<f4"]]),
    "no dtype": array_said(dtype=None),
    "fewer bytes": array_said(shape=[4]),
    "a shape that wraps around": array_said(shape=[2**32, 2**32, 3]),
    "negative": array_said(shape=[-3]),
    "minus one twice": array_said(shape=[-1, -3]),
    "a shape of truths": array_said(shape=[True, 3]),
    "rank": array_said(shape=[3, 1, 1, 1, 1, 1, 1]),
    "data as text": array_said(data="x" * 12),
    "an array of no bytes and giant shape": array_said(data=b"", shape=[0, 2**62]),
}


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in HOSTILE.items() if "no bytes" not in name])
def test_what_is_no_message_is_refused(data):
    with pytest.raises(Refusal) as caught:
        unpack(data)
    assert caught.value.kind in ("malformed", "too_large") and len(caught.value.message) < 300


def test_an_empty_array_of_giant_shape_is_refused_or_empty():
    try:
        assert unpack(HOSTILE["an array of no bytes and giant shape"])["x"].size == 0
    except Refusal as refusal:
        assert refusal.kind in KINDS


BOMBS = {
    "empty lists": b"\xdd" + (2_000_000).to_bytes(4, "big") + b"\x90" * 2_000_000,
    "lists of lists": b"\xdc\xff\xff" * 1_000_000,
    "empty texts in a map": b"\xdf" + (1_000_000).to_bytes(4, "big") + b"\xa0" * 2_000_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_message_that_would_grow_is_refused_before_it_grows(name):
    tracemalloc.start()
    with pytest.raises(Refusal, match="nested|items"):
        unpack(BOMBS[name])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "nope",
        '{"x": NaN}',
        '{"x": -Infinity}',
        "[" * 100_000,
        "[" + "[]," * 5_000 + "[]]",
        "[" + "1," * 5_000 + "1]",
        '{"__numpy__": "!!", "dtype": "<f4", "shape": [1]}',
        '{"__numpy__": 3, "dtype": "<f4", "shape": [1]}',
        '{"__numpy__": "AAAA", "dtype": "<f4", "shape": [1]}',
        '{"__numpy__": "AAAAAA==", "dtype": "|O", "shape": [1]}',
        '{"__numpy__": "AAAAAA==", "dtype": "<f4"}',
        "1" * 5_000,
        "\x00",
    ],
)
def test_json_that_is_no_message_is_refused(text):
    with pytest.raises(Refusal):
        from_json(text.encode())


def test_json_is_as_json_numpy_writes_it():
    # json-numpy 2.1: {"__numpy__": base64 of the bytes, "dtype": dtype.str, "shape": [...]}
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert json.loads(to_json(array)) == {"__numpy__": base64.b64encode(array.tobytes()).decode(), "dtype": "<f4", "shape": [2, 3]}


def test_npy_headers_are_compared_before_anything_is_built():
    good = to_npy(np.zeros((2, 3), np.float32))
    objects = io.BytesIO()
    np.save(objects, np.array([{}], dtype=object), allow_pickle=True)
    columns = to_npy(np.asfortranarray(np.zeros((2, 3), np.float32)))
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999,), }\n"
    giant = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    deep = b"(" * 1000
    deep = b"\x93NUMPY\x01\x00" + len(deep).to_bytes(2, "little") + deep
    for data in (b"", good[:-1], good + b"\x00", objects.getvalue(), columns, giant, deep, b"\x93NUMPY\x09\x00", b"PK\x03\x04"):
        with pytest.raises(Refusal):
            from_npy(data)


def test_pictures_of_vla_eval_stay_packed_until_their_size_is_known():
    raw = {"__image__": True, "format": "raw", "data": bytes(12), "dtype": "|u1", "shape": [2, 2, 3]}
    png = {"__image__": True, "format": "png", "data": b"\x89PNG", "shape": [2, 2, 3]}
    found = unpack(msgpack.packb({"a": raw, "b": png}))
    assert same(np.zeros((2, 2, 3), np.uint8), found["a"]) and found["b"] == Compressed(b"\x89PNG")
