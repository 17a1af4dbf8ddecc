"""Captions inside picture files."""

import io
import struct
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from diptych.core.errors import DataError, ImageError
from diptych.data.open_source import open_source
from diptych.images.embedded import embedded_captions

_XMP = """<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/">
<dc:description><rdf:Alt><rdf:li xml:lang="x-default">{}</rdf:li><rdf:li xml:lang="de">Ein Hund</rdf:li></rdf:Alt>
</dc:description>
<dc:subject><rdf:Bag><rdf:li>dog</rdf:li><rdf:li>snow</rdf:li></rdf:Bag></dc:subject>
</rdf:Description></rdf:RDF></x:xmpmeta>"""


def _iptc(*fields: tuple[int, bytes]) -> bytes:
    """An APP13 segment as Photoshop writes it, with these fields of IPTC's second record."""
    records = b"".join(
        b"\x1c\x02" + bytes([number]) + struct.pack(">H", len(value)) + value for number, value in fields
    )
    resource = b"8BIM\x04\x04\x00\x00" + struct.pack(">I", len(records)) + records + b"\0" * (len(records) % 2)
    content = b"Photoshop 3.0\0" + resource
    return b"\xff\xed" + struct.pack(">H", len(content) + 2) + content


def _jpeg(path: Path, *, segments: bytes = b"", xmp: str | None = None) -> Path:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 30, 30)).save(buffer, "JPEG", **({} if xmp is None else {"xmp": xmp.encode()}))
    content = buffer.getvalue()
    path.write_bytes(content[:2] + segments + content[2:])
    return path


def test_iptc_and_xmp_give_captions_once_each(tmp_path: Path) -> None:
    caption = "A dog in Zürich"
    both = _jpeg(tmp_path / "a.jpg", segments=_iptc((120, caption.encode()), (25, b"dog")), xmp=_XMP.format(caption))
    assert embedded_captions(both) == (caption, "Ein Hund")
    old = _jpeg(tmp_path / "b.jpg", segments=_iptc((120, caption.encode("cp1252"))))
    assert embedded_captions(old) == (caption,)


def test_keywords_are_the_caption_of_a_picture_without_one(tmp_path: Path) -> None:
    keywords = _jpeg(tmp_path / "a.jpg", segments=_iptc((25, b"dog"), (25, b"snow"), (120, b" ")))
    assert embedded_captions(keywords) == ("dog, snow",)
    assert embedded_captions(_jpeg(tmp_path / "b.jpg")) == ()


def test_xmp_in_a_png(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", _XMP.format("A cat"))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    assert embedded_captions(tmp_path / "a.png") == ("A cat", "Ein Hund")


@pytest.mark.parametrize("xmp", ["<x", '<!DOCTYPE x [<!ENTITY a "aaaa">]><x>&a;</x>', " " * 2000])
def test_xmp_that_is_none_or_declares_entities_is_left_out(tmp_path: Path, xmp: str) -> None:
    assert embedded_captions(_jpeg(tmp_path / "a.jpg", xmp=xmp)) == ()


def test_what_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    with pytest.raises((ImageError, OSError)):
        embedded_captions(tmp_path / "a.jpg")


def test_a_folder_of_pictures_with_captions_inside(tmp_path: Path) -> None:
    _jpeg(tmp_path / "a.jpg", segments=_iptc((120, b"A dog")))
    _jpeg(tmp_path / "b.jpg")
    (tmp_path / "c.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"take the captions inside the files: .*\?captions=embedded"):
        open_source(str(tmp_path))
    source = open_source(f"{tmp_path}?captions=embedded")
    assert [(source.key(i), source.captions(i)) for i in range(len(source))] == [("a.jpg", ("A dog",))]
    assert {oddity.what: oddity.num for oddity in source.oddities} == {
        "pictures without a caption": 2,
        "pictures whose metadata cannot be read": 1,
    }
    with pytest.raises(DataError, match="captions is 'all'; it is embedded, or is left out"):
        open_source(f"text-folder:{tmp_path}?captions=all")
