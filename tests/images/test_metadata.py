"""Metadata is not the picture: however broken, it costs at most the rotation, and the same in every command."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from diptych.data.open_source import open_source
from diptych.data.tools.audit import audit
from diptych.data.tools.pack import pack
from diptych.images.decode import decode, decode_array, file_mode
from diptych.images.pool import DecodePool


def _jpeg(mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(written, "JPEG")
    return written.getvalue()


def _with_segment(marker: int, payload: bytes, content: bytes) -> bytes:
    """A JPEG with one more segment at its beginning."""
    return content[:2] + bytes([0xFF, marker]) + (len(payload) + 2).to_bytes(2, "big") + payload + content[2:]


def _with_exif(content: bytes) -> bytes:
    """A JPEG that says that it lies on its side."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return _with_segment(0xE1, exif.tobytes(), content)


BROKEN = {
    "an APP1 of zeros": (0xE1, bytes(64)),
    "an empty EXIF block": (0xE1, b"Exif\0\0II*\0"),
    "EXIF beyond the file": (0xE1, b"Exif\0\0II*\0\xff\xff\xff\x7f"),
    "EXIF that is cut off": (0xE1, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(9)),
    "half a JFIF block": (0xE0, b"JFIF\0"),
    "half a block of Photoshop's": (0xED, b"Photoshop 3.0\0008BIM\x03\xed"),
    "half a block of Adobe's": (0xEE, b"Adobe"),
}


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(1, max_pixels=10_000) as opened:
        yield opened


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("has_exif", [False, True])
def test_broken_metadata_costs_no_picture(pool: DecodePool, name: str, has_exif: bool) -> None:
    content = _with_segment(*BROKEN[name], _with_exif(_jpeg()) if has_exif else _jpeg())
    slow = np.asarray(decode(content))
    upright = np.asarray(decode(_jpeg()))
    assert np.array_equal(slow, upright) or np.array_equal(slow, np.rot90(upright, k=-1))
    assert np.array_equal(decode_array(content), slow)
    assert file_mode(content) == "JPEG RGB"
    assert Image.open(io.BytesIO(pool.preview(content, width_px=20, form="PNG"))).format == "PNG"


@pytest.mark.parametrize("mode", ["CMYK", "L"])
def test_colors_survive_the_loss_of_metadata(mode: str) -> None:
    """A CMYK JPEG of Pillow's is inverted, which its Adobe segment says."""
    expected = np.asarray(decode(_jpeg(mode)))
    assert np.array_equal(np.asarray(decode(_with_segment(0xE0, b"JFIF\0", _jpeg(mode)))), expected)


def test_packing_and_the_audit_agree_on_broken_metadata(tmp_path: Path) -> None:
    for name in ("dog", "frog"):
        (tmp_path / "set" / name).mkdir(parents=True)
    (tmp_path / "set" / "frog" / "whole.jpg").write_bytes(_jpeg())
    for number, (marker, payload) in enumerate(BROKEN.values()):
        content = _with_segment(marker, payload, _with_exif(_jpeg()))
        (tmp_path / "set" / "dog" / f"{number}.jpg").write_bytes(content)
    source = open_source(f"class-folder:{tmp_path / 'set'}")
    assert audit(source).unreadable == ()
    assert pack(source, tmp_path / "packed").skipped == ()
