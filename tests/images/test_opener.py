"""What is opened as a picture, and what is refused before it is decoded."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.core.errors import ImageError
from diptych.images import opener
from diptych.images.decode import IMAGE_SUFFIXES, decode, decode_array, file_mode
from diptych.images.opener import FORMATS, MAX_METADATA_BLOCKS, MAX_SCANS, open_image
from tests.images.hostile import (
    EPS,
    encoded,
    gif_with_comments,
    jpeg_with_segments,
    png,
    png_chunk,
    ppm_with_comment,
    progressive_with_scans,
    tiff_directory,
)


@pytest.mark.parametrize("name", ["a.eps", "a.jpg", "a.png"])
def test_a_format_that_is_not_listed_is_not_opened(tmp_path: Path, name: str) -> None:
    """Pillow would start Ghostscript, which would run the loop in the file for ever."""
    path = tmp_path / name
    path.write_bytes(EPS)
    for image in (path, EPS):
        with pytest.raises(ImageError, match="is not a picture"):
            decode(image)
        with pytest.raises(ImageError, match="is not a picture"):
            decode_array(image)


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_every_suffix_has_its_format(suffix: str) -> None:
    content = encoded(FORMATS[suffix])
    assert decode(content).size == (16, 12)
    assert file_mode(content) == f"{FORMATS[suffix]} {open_image(content).mode}"


@pytest.mark.parametrize("form", ["ICO", "TGA", "PCX", "SGI", "JPEG2000", "PDF", "DDS"])
def test_other_formats_are_refused(form: str) -> None:
    Image.init()
    if form not in Image.SAVE:
        pytest.skip(f"this Pillow does not write {form}")
    with pytest.raises(ImageError, match="is not a picture"):
        decode(encoded(form, 16, 16))


HOSTILE = {
    "scans": progressive_with_scans(MAX_SCANS),
    "JPEG segments": jpeg_with_segments(MAX_METADATA_BLOCKS + 1),
    "JPEG padding": b"\xff\xd8" + b"\xff" * (MAX_METADATA_BLOCKS + 10) + encoded("JPEG")[2:],
    "PNG chunks": png(4, 4, extra=png_chunk(b"tIME", b"") * (MAX_METADATA_BLOCKS + 1)),
    "PNG empty data": png(4, 4, extra=png_chunk(b"IDAT", b"") * (MAX_METADATA_BLOCKS + 100)),
    "PNG text": png(4, 4, extra=png_chunk(b"tEXt", b"k\0" + bytes(2**25))),
    "GIF comments": gif_with_comments(MAX_METADATA_BLOCKS + 1),
    "TIFF directory": tiff_directory(500, 100_000),
    "PPM comment": ppm_with_comment(5000),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_what_would_take_long_is_refused_before_it_is_decoded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", never)
    monkeypatch.setattr("simplejpeg.decode_jpeg", never)
    for function in (decode, decode_array):
        with pytest.raises(ImageError, match=r"over the limit|is not a picture"):
            function(HOSTILE[name])


def test_ordinary_files_are_far_from_the_limits() -> None:
    """A progressive photo has about ten scans; camera files have a few dozen segments."""
    for content in (
        progressive_with_scans(1, 640, 480),
        jpeg_with_segments(200, b"x" * 60_000),
        png(64, 64, extra=png_chunk(b"tEXt", b"k\0" + b"x" * 100_000) * 9),
        gif_with_comments(100),
        ppm_with_comment(1000),
    ):
        decode(content)


def test_scans_count_with_the_size_of_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    content = progressive_with_scans(40)
    decode(content)
    with pytest.raises(ImageError, match="scans of 192 pixels are over the limit"):
        decode(content, max_pixels=16 * 12)
    monkeypatch.setattr(opener, "MAX_PIXELS", 16 * 12)
    with pytest.raises(ImageError, match="scans"):
        decode_array(content)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_exif_whose_entries_all_name_the_whole_block_is_left_out(form: str) -> None:
    """Read as it stands, a thousand entries of 40 kB each would take 40 MB; in a PNG of 32 MB, terabytes."""
    plain, hostile = encoded(form), encoded(form, exif=tiff_directory(1000, 40_000, exif=True))
    assert "exif" not in open_image(hostile).info
    assert np.array_equal(np.asarray(decode(hostile)), np.asarray(decode(plain)))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize(
    "block", [bytes(64), b"II*\0", b"Exif\0\0II*\0" + b"\xff" * 40, b"MM\0*" + bytes(4) + b"\xff" * 20]
)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_is_not_a_broken_picture(form: str, block: bytes) -> None:
    content, plain = encoded(form), np.asarray(decode(encoded(form)))
    if form == "JPEG":
        content = content[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(block)) + block + content[2:]
    else:
        content = encoded(form, exif=block)
    assert np.array_equal(np.asarray(decode(content)), plain)
    assert np.array_equal(decode_array(content), decode_array(encoded(form)))


def test_of_an_animation_the_first_frame_is_read() -> None:
    frames = [Image.new("RGB", (8, 8), (number, 0, 0)) for number in range(50)]
    for form in ("GIF", "PNG", "WEBP"):
        buffer = io.BytesIO()
        frames[0].save(buffer, form, save_all=True, append_images=frames[1:])
        assert np.asarray(decode(buffer.getvalue()))[..., 0].max() <= 2
