import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from diptych.core.errors import ImageError
from diptych.images import opener
from diptych.images.decode import decode, decode_array
from diptych.images.jpeg import decode_jpeg
from diptych.images.listing import list_images
from diptych.images.sheet import SheetRow, contact_sheet
from tests.conftest import draw_photos


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def _noise(width: int = 64, height: int = 48) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.jpg", b"", "is not a picture"),
        ("text.jpg", b"<html>not found</html>", "is not a picture"),
        ("half.jpg", _jpeg(_noise())[:1500], "truncated"),
        ("head.png", b"\x89PNG\r\n\x1a\n", "is not a picture"),
        ("gone.jpg", None, "no such file"),
    ],
)
def test_a_broken_picture_is_an_error_that_names_it(
    tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    for form in (path, str(path)):
        with pytest.raises(ImageError, match=f"{name}: .*{reason}") as caught:
            decode(form)
        assert "\n" not in str(caught.value)


def test_broken_bytes_and_folders_are_image_errors(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="<3 bytes>"):
        decode(b"abc")
    with pytest.raises(ImageError):
        decode(tmp_path)


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opener, "MAX_PIXELS", 1000)
    with pytest.raises(ImageError, match="64x48 is over the limit of 1000 pixels"):
        decode(_jpeg(_noise()))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int) -> None:
    upright = Image.new("RGB", (32, 16), (255, 0, 0))
    upright.paste((0, 0, 255), (0, 0, 8, 8))  # Blue at the top left.
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    stored.save(buffer, "PNG", exif=exif)
    assert np.array_equal(np.asarray(decode(buffer.getvalue())), np.asarray(upright))


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    buffer = io.BytesIO()
    _noise(40, 24).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_fast_way_turns_as_the_slow_one_does(orientation: int) -> None:
    content = _exif(orientation)
    assert decode_jpeg(content) is not None
    assert np.array_equal(decode_array(content), np.asarray(decode(content)))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"quality": 5}])
def test_the_fast_way_gives_pillows_pixels(tmp_path: Path, mode: str, options: dict[str, int]) -> None:
    image = _noise(157, 93).convert(mode)
    image.save(tmp_path / "a.jpg", **options)  # type: ignore[arg-type]
    expected = np.asarray(decode(tmp_path / "a.jpg"))
    for form in (tmp_path / "a.jpg", str(tmp_path / "a.jpg"), (tmp_path / "a.jpg").read_bytes()):
        assert np.array_equal(decode_array(form), expected)
    assert (decode_jpeg((tmp_path / "a.jpg").read_bytes()) is None) == (mode == "CMYK")


def test_the_fast_way_leaves_bombs_and_broken_files_to_the_slow_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opener, "MAX_PIXELS", 3000)
    with pytest.raises(ImageError, match="over the limit of 3000"):
        decode_array(_jpeg(_noise()))
    with pytest.raises(ImageError, match="truncated"):
        decode_array(_jpeg(_noise(50, 50))[:1500])
    with pytest.raises(ImageError, match="no such file"):
        decode_array("gone.jpg")
    with pytest.raises(ImageError, match="is a folder"):
        decode_array("/")


def test_a_large_picture_after_a_small_one_and_threads_have_their_own_memory() -> None:
    first = decode_array(_jpeg(_noise(10, 10))).copy()
    large = decode_array(_jpeg(_noise(300, 200)))
    assert np.array_equal(large, np.asarray(decode(_jpeg(_noise(300, 200)))))
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(decode_array, _jpeg(_noise(10, 10))).result()
    assert np.array_equal(large, np.asarray(decode(_jpeg(_noise(300, 200)))))
    assert np.array_equal(other, first)


def test_palette_with_alpha_keeps_its_colours(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.info["transparency"] = 0
    image.save(tmp_path / "p.png", transparency=bytes([0, 255]))
    assert decode(tmp_path / "p.png").getpixel((0, 0)) == (10, 200, 30)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    levels = np.array([[0, 128 * 256, 255 * 256 + 255]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    assert np.asarray(decode(tmp_path / "deep.png"))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("kind", ["16-bit gray", "gray", "palette", "palette with alpha", "RGB"])
def test_every_kind_of_picture_is_turned(tmp_path: Path, orientation: int, suffix: str, kind: str) -> None:
    levels = np.arange(24, dtype=np.uint16).reshape(4, 6) * 256
    stored = Image.fromarray(levels if kind == "16-bit gray" else (levels // 256).astype(np.uint8))
    if kind.startswith("palette"):
        stored.putpalette([value for level in range(256) for value in (level, level, level)])
    if kind == "RGB":
        stored = stored.convert("RGB")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    if kind == "palette with alpha":
        stored.info["transparency"] = 255
    stored.save(tmp_path / f"a.{suffix}", exif=exif)
    grays = (levels // 256).astype(np.uint8)
    upright = {  # What the EXIF standard says of the first row and the first column.
        1: grays,
        2: grays[:, ::-1],
        3: grays[::-1, ::-1],
        4: grays[::-1],
        5: grays.T,
        6: grays[::-1].T,
        7: grays[::-1, ::-1].T,
        8: grays[:, ::-1].T,
    }[orientation]
    decoded = decode(tmp_path / f"a.{suffix}")
    assert np.array_equal(np.asarray(decoded)[:, :, 0], upright)
    with opener.open_image(tmp_path / f"a.{suffix}") as opened:
        assert opener.upright_size(opened) == decoded.size


@pytest.mark.parametrize(("dtype", "said"), [(np.float32, "floats"), (np.int32, "signed or 32-bit integers")])
def test_pixels_without_a_range_are_refused_with_a_way_out(tmp_path: Path, dtype: type, said: str) -> None:
    Image.fromarray(np.array([[0, 1, 1000]], dtype=dtype)).save(tmp_path / "deep.tif")
    for read in (decode, decode_array):
        with pytest.raises(ImageError, match=rf"deep\.tif: its pixels are {said}.* convert it first: magick IN"):
            read(tmp_path / "deep.tif")


@pytest.mark.parametrize("mode", ["L", "LA", "1", "CMYK", "RGBA", "YCbCr", "F", "P"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    source = Image.new("RGB", (6, 4), (255, 255, 255)).convert(mode)
    decoded = decode(source)
    assert (decoded.mode, decoded.size) == ("RGB", (6, 4))
    assert decoded.getpixel((2, 2)) == (255, 255, 255)


def test_cmyk_jpeg_from_a_file(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "c.jpg")
    red, green, blue = np.asarray(decode(tmp_path / "c.jpg"))[4, 4].tolist()
    assert red > 240
    assert max(green, blue) < 20


def test_of_an_animation_the_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert decode(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)


def test_arrays_pass_unchanged_and_wrong_ones_are_refused() -> None:
    pixels = np.asarray(_noise())
    assert np.array_equal(np.asarray(decode(pixels)), pixels)
    for wrong in (pixels[..., 0], pixels[..., :2], np.zeros((3, 8, 8), np.uint8)):
        with pytest.raises(ImageError, match=r"must be uint8 with shape \(height, width, 3\)"):
            decode(wrong)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("wrong", [np.zeros((4, 4, 3), np.float32), None, 7])
def test_what_is_no_image_is_refused(wrong: object) -> None:
    with pytest.raises(ImageError):
        decode(wrong)  # type: ignore[arg-type]


def test_a_given_picture_is_left_as_it_was() -> None:
    image = Image.new("RGBA", (4, 4), (1, 2, 3, 4))
    decode(image)
    assert image.mode == "RGBA"


def test_list_images_is_sorted_deep_and_leaves_hidden_ones_out(photos: Path) -> None:
    (photos / ".hidden").mkdir()
    (photos / ".hidden" / "x.png").write_bytes(b"")
    (photos / "@eaDir").mkdir()
    (photos / "@eaDir" / "x.png").write_bytes(b"")
    (photos / "notes.txt").write_text("no picture")
    (photos / "LOUD.JPG").write_bytes(b"")
    names = [path.relative_to(photos).as_posix() for path in list_images(photos).paths]
    assert sorted(names) == ["LOUD.JPG", "a.png", "b.png", "c.png", "d.png", "e.png", "more/f.jpg"]
    assert list(list_images(photos).paths) == sorted(list_images(photos).paths)


def test_list_images_counts_what_it_leaves_out(photos: Path) -> None:
    (photos / "holiday.jpg").mkdir()
    draw_photos(photos / "holiday.jpg", ["g.png"])
    for name in ("x.CR2", "y.cr2", "more/z.psd", ".hidden.psd", "a.txt", "movie.mp4"):
        (photos / name).write_bytes(b"")
    found = list_images(photos)
    assert len(found.paths) == 7
    assert photos / "holiday.jpg" / "g.png" in found.paths
    assert [(left.suffix, left.num, left.examples) for left in found.left_out] == [
        (".cr2", 2, (f"{photos}/x.CR2", f"{photos}/y.cr2")),
        (".psd", 1, (f"{photos}/more/z.psd",)),
    ]
    assert "export them as JPEG" in str(found.left_out[0])
    (photos / "only").mkdir()
    (photos / "more" / "z.psd").rename(photos / "only" / "z.psd")
    with pytest.raises(ImageError, match=r"holds no pictures .*; left out: 1 .psd \(.*z.psd\): not read; convert"):
        list_images(photos / "only")


def test_list_images_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="holds no pictures"):
        list_images(tmp_path)
    with pytest.raises(ImageError, match="no such folder"):
        list_images(tmp_path / "gone")


def test_contact_sheet_has_room_for_every_tile() -> None:
    picture = Image.new("RGB", (30, 10), (255, 0, 0))
    rows = [SheetRow("one", [(picture, "a caption that is far too long for its tile")] * 3), SheetRow("two", [])]
    one, wrapped = contact_sheet(rows, tile_px=60), contact_sheet(rows, tile_px=60, columns=2)
    assert one.width == 2 * 24 + 3 * 60 + 2 * 12
    assert wrapped.width == 2 * 24 + 2 * 60 + 12
    assert wrapped.height - one.height == 60 + 22 + 12  # One line more.
    red = (np.asarray(one) == (255, 0, 0)).all(axis=2)
    assert red.sum() == 3 * 60 * 20  # Proportions are kept.
