"""The wire format: what goes out comes back, openpi's own bytes are read, and nothing else is believed."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla_client.codec import DTYPES, Packer, ProtocolError, pack, unpack

arrays = st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, min_side=0)))


@settings(max_examples=100, deadline=None)
@given(arrays)
def test_arrays_come_back_bit_for_bit(array):
    back = unpack(pack({"actions": array}))["actions"]
    assert back.dtype == array.dtype and back.shape == array.shape and back.tobytes() == array.tobytes()
    assert back.flags.writeable and back.flags.aligned


def test_big_endian_and_strided_arrays_come_back_by_value():
    array = np.arange(24, dtype=">f4").reshape(4, 6)[::2, ::3]
    assert np.array_equal(unpack(pack(array)), array)


def test_plain_values_and_scalars_come_back():
    message = {"prompt": "öffne", "n": 3, "x": 0.5, "none": None, "list": [1, [True]], "raw": b"\0", "scalar": np.float32(1.5)}
    back = unpack(pack(message))
    assert back == message and back["scalar"].dtype == np.float32


def test_openpis_own_bytes_are_read():
    # As openpi's msgpack_numpy.Packer writes them: byte keys, a tuple for the shape.
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    wire = {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": array.dtype.str, b"shape": array.shape}
    assert np.array_equal(unpack(msgpack.packb({"actions": wire}))["actions"], array)
    assert np.array_equal(msgpack.unpackb(pack(array))[b"shape"], [2, 3])


def test_a_packer_says_what_pack_says_also_after_what_cannot_be_sent():
    packer = Packer()
    for message in ({"a": np.arange(9)}, {"b": object()}, {"c": np.zeros((2, 300_000), np.uint8)}, {"d": {1j}}, {"e": "x"}):
        try:
            expected = pack(message)
        except ProtocolError:
            with pytest.raises(ProtocolError):
                packer.pack(message)
        else:
            assert packer.pack(message) == expected


def wire(**changes):
    fields = {"__ndarray__": True, "data": b"\0" * 24, "dtype": "<f4", "shape": [2, 3]}
    return msgpack.packb({**fields, **changes})


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (wire(dtype="|O"), "dtype"),
        (wire(dtype="<U6"), "dtype"),
        (wire(dtype="<f4,<f4"), "dtype"),
        (wire(dtype=["<f4"]), "dtype"),
        (wire(dtype=None), "dtype"),
        (wire(shape=[2, 4]), "does not have 24 bytes"),
        (wire(shape=[-2, -3]), "shape"),
        (wire(shape=[2**32, 2**32]), "does not have 24 bytes"),  # 0 in 64-bit arithmetic
        (wire(shape=[1] * 9), "shape"),
        (wire(shape=[6.0]), "shape"),
        (wire(shape="23"), "shape"),
        (wire(shape=[True, 6]), "shape"),
        (wire(data="text"), "bytes"),
        (msgpack.packb({"__ndarray__": True}), "dtype"),
        (msgpack.packb({"__npgeneric__": True, "dtype": "<f4", "data": [1]}), "number"),
        (msgpack.packb({"__npgeneric__": True, "dtype": "|u1", "data": 300}), "out of range"),
        (msgpack.packb({"__npgeneric__": True, "dtype": "|u1", "data": 3.5}), "number"),
        (msgpack.packb({"__npgeneric__": True, "dtype": "<f4", "data": "3"}), "number"),
        (msgpack.packb(msgpack.ExtType(5, b"x")), "extension"),
        (msgpack.packb(1) + b"\x01", "not a message"),
        (b"\x93\x01", "not a message"),
        (b"\xdd\xff\xff\xff\xff", "not a message"),  # a list of four billion
        (b"\x91" * 100_000, "not a message"),  # nested without end
        (b"\xc1", "not a message"),
        (b"", "not a message"),
    ],
)
def test_what_is_no_message_is_refused(data, expected):
    with pytest.raises(ProtocolError, match=expected):
        unpack(data)


@pytest.mark.parametrize("value", [np.array([object()]), np.array(["text"]), np.array([1j]), {1, 2}, object()])
def test_what_cannot_be_sent_is_refused(value):
    with pytest.raises(ProtocolError, match="cannot be sent"):
        pack({"value": value})


def test_mutated_bytes_give_a_message_or_a_typed_error():
    rng = np.random.default_rng(0)
    message = {"actions": np.ones((8, 7), np.float32), "timing": {"infer_ms": 3.5}, "names": ["a", "b"]}
    good = np.frombuffer(pack(message), np.uint8)
    refused = 0
    for _ in range(5000):
        bad = good.copy()
        bad[rng.integers(0, len(bad), size=rng.integers(1, 6))] = rng.integers(0, 256)
        bad = bad[: rng.integers(1, len(bad) + 1)] if rng.random() < 0.3 else bad
        try:
            unpack(bad.tobytes())
        except ProtocolError:
            refused += 1
    assert refused > 500  # otherwise the mutations missed the structure
