"""Read captions from the IPTC and XMP metadata of image files, as Lightroom, digiKam and exiftool write them."""

from pathlib import Path
from xml.etree import ElementTree

from PIL import Image, ImageFile, IptcImagePlugin

from diptych.core.encodings import decode_text
from diptych.core.errors import ImageError
from diptych.images.opener import open_image

_IPTC_CAPTION, _IPTC_KEYWORDS = (2, 120), (2, 25)
_DESCRIPTION = "{http://purl.org/dc/elements/1.1/}description"
_SUBJECT = "{http://purl.org/dc/elements/1.1/}subject"
_ITEM = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"
_XMP_TAG = 700
"""Tag of the XMP packet in a TIFF."""
_MAX_XMP_BYTES = 2**20


def embedded_captions(path: Path) -> tuple[str, ...]:
    """Return the distinct captions in an image file: the IPTC caption and XMP's `dc:description` in every language.

    If there are none, the keywords are returned as one caption.

    Raises:
        ImageError: the file is not an image, its metadata is damaged, or it exceeds a limit.
        OSError: the file cannot be read.
    """
    try:
        with open_image(path) as image:
            assert isinstance(image, ImageFile.ImageFile)
            iptc = IptcImagePlugin.getiptcinfo(image) or {}
            xmp = _xmp(image)
    except (SyntaxError, ValueError, KeyError, TypeError, IndexError) as error:  # The IPTC block is damaged.
        raise ImageError(f"{path}: its metadata cannot be read ({error})") from None
    captions = [*_texts(iptc.get(_IPTC_CAPTION)), *_items(xmp, _DESCRIPTION)]
    keywords = list(dict.fromkeys([*_texts(iptc.get(_IPTC_KEYWORDS)), *_items(xmp, _SUBJECT)]))
    return tuple(dict.fromkeys(captions)) or ((", ".join(keywords),) if keywords else ())


def _texts(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    texts = (decode_text(item)[0].strip(" \t\r\n\0") for item in values if isinstance(item, bytes))
    return [text for text in texts if text]


def _xmp(image: Image.Image) -> ElementTree.Element | None:
    """Return the XMP packet; None if there is none, or if it is larger than 1 MiB or declares entities."""
    tags = getattr(image, "tag_v2", {})
    packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or tags.get(_XMP_TAG)
    content = packet.encode() if isinstance(packet, str) else packet
    if not isinstance(content, bytes) or len(content) > _MAX_XMP_BYTES or b"<!" in content:
        return None
    try:
        return ElementTree.fromstring(content.strip(b" \t\r\n\0"))
    except ElementTree.ParseError:
        return None


def _items(xmp: ElementTree.Element | None, name: str) -> list[str]:
    if xmp is None:
        return []
    texts = ((item.text or "").strip() for element in xmp.iter(name) for item in element.iter(_ITEM))
    return [text for text in texts if text]
