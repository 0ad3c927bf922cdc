from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from vla.data import images
from vla.data.images import decode_frame, decode_image, decode_jpeg
from vla.data.images import orientation as stated
from vla.data.quarantine import BadSample

RNG = np.random.default_rng(0)
# Two colours, so that a turned or mirrored picture is told from an upright one, with some noise to be damaged.
PICTURE = np.zeros((24, 40, 3), np.uint8)
PICTURE[:12, :20] = 220, 40, 30
PICTURE[12:, 20:] = 30, 60, 200


def saved(image: np.ndarray | Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def near(image: np.ndarray, want: np.ndarray, within: float = 6) -> bool:
    return image.dtype == np.uint8 and image.shape == want.shape and float(np.abs(image.astype(int) - want).mean()) <= within


GREY = np.repeat(PICTURE.mean(-1, keepdims=True).astype(np.uint8), 3, axis=-1)
GOOD = {
    "jpeg": (saved(PICTURE, "JPEG", quality=95), PICTURE),
    "progressive jpeg": (saved(PICTURE, "JPEG", quality=95, progressive=True), PICTURE),
    "jpeg 4:4:4 with restarts": (saved(PICTURE, "JPEG", quality=95, subsampling=0, restart_marker_rows=1), PICTURE),
    "grey jpeg": (saved(GREY[..., 0], "JPEG", quality=95), GREY),
    "jpeg of one pixel": (saved(PICTURE[:1, :1], "JPEG", quality=95), PICTURE[:1, :1]),
    "png": (saved(PICTURE, "PNG"), PICTURE),
    "grey png": (saved(GREY[..., 0], "PNG"), GREY),
    "png with a palette": (saved(Image.fromarray(PICTURE).quantize(8), "PNG"), PICTURE),
    "png of one bit": (saved(Image.fromarray(GREY[..., 0] > 20), "PNG"), np.where(GREY > 20, 255, 0).astype(np.uint8)),
    "webp": (saved(PICTURE, "WEBP", lossless=True), PICTURE),
    "opaque png with alpha": (saved(np.dstack([PICTURE, np.full(PICTURE.shape[:2], 255, np.uint8)]), "PNG"), PICTURE),
}


@pytest.mark.parametrize("name", GOOD)
def test_pictures_that_need_no_word_about_them(name):
    data, want = GOOD[name]
    assert near(decode_image(data), want)


def png16(values: np.ndarray) -> bytes:
    """A 16-bit PNG, of (H, W) or (H, W, 3), by the format itself: Pillow writes no RGB of 16 bits."""
    height, width = values.shape[:2]
    colour = 2 if values.ndim == 3 else 0

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("picture", [PICTURE, GREY[..., 0]], ids=["rgb", "grey"])
def test_sixteen_bits_only_where_declared(picture):
    data = png16(picture.astype(np.uint16) * 257)
    want = picture if picture.ndim == 3 else GREY
    assert near(decode_image(data, bits=16), want, within=0.6)
    with pytest.raises(BadSample, match="16 bits") as error:
        decode_image(data)
    assert error.value.cause == "schema"


def test_cmyk_only_where_declared():
    data = saved(Image.fromarray(PICTURE).convert("CMYK"), "JPEG", quality=95)
    assert near(decode_image(data, cmyk=True), PICTURE)
    with pytest.raises(BadSample, match="CMYK") as error:
        decode_image(data)
    assert error.value.cause == "schema"


UPRIGHT = {  # what brings a picture of each EXIF orientation upright
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image[::-1, ::-1].transpose(1, 0, 2),
    8: lambda image: np.rot90(image),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_turned_picture_is_as_declared(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(PICTURE, kind, exif=exif, **{"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(kind, {}))
    assert stated(data) == orientation
    assert near(decode_image(data, exif="apply"), UPRIGHT[orientation](PICTURE))
    assert near(decode_image(data, exif="ignore"), PICTURE)
    with pytest.raises(BadSample, match=f"to be turned \\({orientation}\\)") as error:
        decode_image(data)
    assert error.value.cause == "schema"


def test_exif_that_says_upright_or_something_else_changes_nothing():
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    assert near(decode_image(saved(PICTURE, "JPEG", quality=95, exif=exif)), PICTURE)
    exif[0x0112] = 1
    assert near(decode_image(saved(PICTURE, "JPEG", quality=95, exif=exif)), PICTURE)


def test_transparency_is_refused():
    alpha = np.full(PICTURE.shape[:2], 255, np.uint8)
    alpha[0, 0] = 254
    see_through = saved(Image.fromarray(PICTURE).quantize(8), "PNG", transparency=0)
    for data in (saved(np.dstack([PICTURE, alpha]), "PNG"), see_through):
        with pytest.raises(BadSample, match="transparent") as error:
            decode_image(data)
        assert error.value.cause == "schema"


def huge(kind: str) -> bytes:
    """A small file whose header says 30,000 x 30,000 pixels."""
    if kind == "PNG":
        data = bytearray(saved(PICTURE, "PNG"))
        data[16:24] = struct.pack(">II", 30_000, 30_000)
        data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
        return bytes(data)
    data = bytearray(saved(PICTURE, "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 30_000, 30_000)
    return bytes(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_huge_picture_is_refused_before_memory_is_taken(kind):
    data = huge(kind)
    tracemalloc.start()
    try:
        with pytest.raises(BadSample) as error:
            decode_image(data)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    assert error.value.cause == "oversize"
    if kind == "JPEG":
        with pytest.raises(BadSample, match="30000 x 30000"):
            decode_jpeg(data)


def test_the_limit_is_the_one_that_is_stated(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 24 * 40)
    assert near(decode_image(GOOD["png"][0]), PICTURE)
    monkeypatch.setattr(images, "MAX_PIXELS", 24 * 40 - 1)
    for name in ("jpeg", "png", "grey jpeg"):
        with pytest.raises(BadSample, match="24 x 40") as error:
            decode_image(GOOD[name][0])
        assert error.value.cause == "oversize"


def test_damaged_pictures_are_bad_samples_and_nothing_else():
    noisy = RNG.integers(0, 256, (40, 56, 3), dtype=np.uint8)
    undamaged, tried = 0, 0
    for data in (saved(noisy, "JPEG", quality=90), saved(noisy, "PNG"), saved(noisy, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0")):
        spoiled = [data[:cut] for cut in RNG.integers(0, len(data), 40)] + [b"", b"GIF89a", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"]
        for at in RNG.integers(0, len(data), 120):
            changed = bytearray(data)
            changed[at] ^= 1 << int(RNG.integers(8))
            spoiled.append(bytes(changed))
        for each in spoiled:
            tried += 1
            try:
                image = decode_image(each, exif="apply", bits=16)
            except BadSample as error:
                assert error.cause in ("decode", "oversize", "schema")
            else:  # a bit that no checksum covers, as in a JPEG's pixels
                undamaged += 1
                assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    assert tried == 3 * 164 and undamaged < tried / 2


def test_a_truncated_jpeg_is_never_filled_with_grey():
    for data in (GOOD["jpeg"][0], GOOD["progressive jpeg"][0], saved(PICTURE, "JPEG", exif=Image.Exif())):
        for share in (0.5, 0.8, 0.95):
            with pytest.raises(BadSample) as error:
                decode_image(data[: int(len(data) * share)])
            assert error.value.cause == "decode"


def test_frames_of_shards_decode_into_given_memory():
    data = simplejpeg.encode_jpeg(PICTURE, quality=95)
    out = np.empty(PICTURE.shape, np.uint8)
    assert decode_frame(data, out) is out and near(out, PICTURE)
    assert near(decode_frame(data, np.empty((5, 5, 3), np.uint8)), PICTURE)
