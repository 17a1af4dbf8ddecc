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
from diptych.images.formats import FORMATS
from diptych.images.opener import MAX_METADATA_BLOCKS, MAX_SCANS, open_image
from tests.images.hostile import (
    EPS,
    codestream_with_segments,
    encoded,
    gif_with_comments,
    jp2_with_boxes,
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


@pytest.mark.parametrize("form", ["ICO", "TGA", "PCX", "SGI", "PDF", "DDS"])
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
    "JPEG 2000 boxes": jp2_with_boxes(MAX_METADATA_BLOCKS + 1),
    "JPEG 2000 header boxes": jp2_with_boxes(MAX_METADATA_BLOCKS + 1, inside=True),
    "JPEG 2000 segments": codestream_with_segments(MAX_METADATA_BLOCKS + 1),
    "AVIF metadata": encoded("AVIF") + (2**25 + 8).to_bytes(4, "big") + b"free" + bytes(2**25),
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


@pytest.mark.parametrize("num_pixels", [100_000_000, 199_000_000])
def test_there_is_one_limit_of_pixels(num_pixels: int) -> None:
    before = Image.MAX_IMAGE_PIXELS
    written = io.BytesIO()
    Image.new("1", (10_000, num_pixels // 10_000)).save(written, "PNG")
    assert open_image(written.getvalue()).size == (10_000, num_pixels // 10_000)  # pytest makes warnings errors.
    assert before == Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageError, match="is over the limit of 99999999 pixels"):
        open_image(written.getvalue(), max_pixels=99_999_999)
    with pytest.raises(ImageError, match="is over the limit of 200000000 pixels"):
        open_image(png(14_143, 14_143))
    assert before == Image.MAX_IMAGE_PIXELS


def test_heic_without_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded("HEIF")
    (tmp_path / "a.heic").write_bytes(content)
    monkeypatch.setattr(opener, "HAS_HEIC", False)
    for image in (content, tmp_path / "a.heic"):
        with pytest.raises(ImageError, match=r"is HEIC, which needs an extra: pip install 'diptych\[heic\]'"):
            decode(image)


def test_heic_and_avif_are_upright_and_have_their_colors(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), (250, 10, 10))
    image.paste((10, 10, 250), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # The left side is on top.
    from pillow_heif.as_plugin import _save_heif

    for name in ("a.heic", "a.avif", "a.jp2"):
        if name == "a.heic":
            image.encoderinfo = {"exif": exif.tobytes(), "quality": 90}
            with (tmp_path / name).open("wb") as file:
                _save_heif(image, file, name)  # As phones do, it writes the rotation into the container.
        elif name == "a.avif":
            image.save(tmp_path / name, exif=exif)
        else:
            image.save(tmp_path / name)
        pixels = np.asarray(decode(tmp_path / name)).astype(int)
        top, bottom = (pixels[2, 10], pixels[-3, 10]) if name != "a.jp2" else (pixels[10, 2], pixels[10, -3])
        assert pixels.shape == ((20, 40, 3) if name == "a.jp2" else (40, 20, 3))
        assert np.abs(top - (10, 10, 250)).max() < 40
        assert np.abs(bottom - (250, 10, 10)).max() < 40


def _raw(kind: str) -> bytes:
    """A TIFF as cameras write RAW photos: its first picture, which Pillow would open, is a thumbnail."""
    written = io.BytesIO()
    tags = {"nef": {254: 1}, "dng": {50706: b"\x01\x04\0\0"}, "cr2": {}}[kind]
    Image.new("RGB", (16, 12), (9, 9, 9)).save(written, "TIFF", tiffinfo=tags)
    content = written.getvalue()
    if kind != "cr2":
        return content
    (place,) = struct.unpack_from("<L", content, 4)
    moved = bytearray(content + bytes(place % 2) + content[place:])
    struct.pack_into("<L", moved, 4, len(content) + place % 2)
    moved[8:12] = b"CR\x02\0"
    return bytes(moved)


@pytest.mark.parametrize("kind", ["nef", "dng", "cr2"])
def test_the_thumbnail_of_a_raw_photo_is_never_opened(tmp_path: Path, kind: str) -> None:
    content = _raw(kind)
    assert Image.open(io.BytesIO(content)).size == (16, 12)
    (tmp_path / "renamed.tif").write_bytes(content)
    for image in (content, tmp_path / "renamed.tif"):
        for function in (decode, decode_array):
            with pytest.raises(ImageError, match="is a RAW photo, of which Pillow reads at most a thumbnail"):
                function(image)
    (tmp_path / "a.pef").write_bytes(encoded("TIFF"))  # Of some kinds only the name tells.
    with pytest.raises(ImageError, match="is a RAW photo"):
        decode(tmp_path / "a.pef")
    assert decode(encoded("TIFF")).size == (16, 12)
