"""Draw arbitrary text in images and plots; characters that the default font lacks are drawn with a system font."""

from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from itertools import groupby
from threading import RLock
from typing import TYPE_CHECKING, Any, TypeAlias

from PIL import ImageDraw, ImageFont

from diptych.core.terminal import visible

if TYPE_CHECKING:
    from matplotlib.font_manager import FontEntry
    from matplotlib.ft2font import FT2Font

PLACEHOLDER = "□"
"""Replaces a character that no font has."""
_FIRST = "DejaVu Sans"
"""The default font; matplotlib includes it."""
_SMALLER = 0.92
"""Size of DejaVu Sans relative to Pillow's default font of the same apparent size."""
_lock = RLock()


def drawable(text: str, *, keep: str = "") -> str:
    r"""Return the text with control characters escaped, and `□` in place of each character that no font has.

    Variation selectors and joiners that no font has are removed, because they are invisible.

    Args:
        text: any text, including a file name that is not UTF-8.
        keep: control characters that are not escaped, such as a newline.

    >>> drawable("a\t$b$")
    'a\\t$b$'
    """
    return "".join(_replaced(letter) for letter in visible(text, keep=keep))


def plot_text(texts: Iterable[str], *, most: int | None = None) -> tuple[list[str], dict[str, Any]]:
    """Return drawable texts, and matplotlib options that disable math mode and select fonts for their characters.

    Args:
        texts: any texts.
        most: maximum number of characters of each text; longer texts are cut and end with `…`.
    """
    from matplotlib import rcParams  # noqa: PLC0415  (the import takes 0.5 s)

    shown = [shorten(drawable(text), most) for text in texts]
    others = {font.name for letter in set("".join(shown)) if (font := _font_of(letter)) is not None}
    return shown, {"parse_math": False, "fontfamily": [*rcParams["font.family"], _FIRST, *sorted(others - {_FIRST})]}


def shorten(text: str, most: int | None) -> str:
    """Return the text, cut to at most `most` characters; a cut text ends with `…`.

    >>> shorten("a brown dog", 8), shorten("a dog", 8)
    ('a brown…', 'a dog')
    """
    return text if most is None or len(text) <= most else text[: most - 1] + "…"


class FontChain:
    """Draws each character with the first font that has it. Pillow itself uses only one font."""

    def __init__(self, size: int) -> None:
        self._size = round(_SMALLER * size)

    def getlength(self, text: str) -> float:
        """Return the width in pixels."""
        return sum(font.getlength(part) for font, part in self._parts(text))

    def draw(self, draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, *, fill: Any) -> None:
        """Draw a line of text, with all fonts on one baseline."""
        x, base_line = place[0], place[1] + self._font(None).getmetrics()[0]
        for font, part in self._parts(text):
            draw.text((x, base_line), part, fill=fill, font=font, anchor="ls")
            x += font.getlength(part)

    def _parts(self, text: str) -> Sequence[tuple[ImageFont.FreeTypeFont, str]]:
        grouped = groupby(text, key=lambda letter: self._font(_font_of(letter)))
        return [(font, "".join(letters)) for font, letters in grouped]

    def _font(self, entry: "FontEntry | None") -> ImageFont.FreeTypeFont:
        return _opened((entry or _fonts()[0]).fname, self._size)


Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont | FontChain


def font_for(texts: str, size: int) -> Font:
    """Return a font with the characters of the texts: Pillow's default for ASCII, otherwise a chain of system fonts.

    Matplotlib finds the system fonts. If it is not installed, the function returns Pillow's default font for all texts.
    """
    is_plain = texts.replace("…", "").isascii() or not _has_matplotlib()
    return ImageFont.load_default(size) if is_plain else FontChain(size)


def draw_line(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, font: Font, *, fill: Any) -> None:
    """Draw a line of text; `place` is its upper left corner."""
    if isinstance(font, FontChain):
        font.draw(draw, place, text, fill=fill)
    else:
        draw.text(place, text, fill=fill, font=font)


@cache
def _has_matplotlib() -> bool:
    return find_spec("matplotlib") is not None


@lru_cache(maxsize=64)
def _opened(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


def _replaced(letter: str) -> str:
    if letter.isascii() or not _has_matplotlib() or _font_of(letter) is not None:
        return letter
    is_unseen = letter in "\u200c\u200d" or "\ufe00" <= letter <= "\ufe0f" or "\U000e0100" <= letter <= "\U000e01ef"
    return "" if is_unseen else PLACEHOLDER


def _font_of(letter: str) -> "FontEntry | None":
    """Return the first font that has a character; None if there is none."""
    with _lock:  # FreeType faces are not thread-safe.
        return _found_font(letter)


@lru_cache(maxsize=10_000)
def _found_font(letter: str) -> "FontEntry | None":
    return next((font for font in _fonts() if _draws(font.fname, letter)), None)


@lru_cache(maxsize=1)
def _fonts() -> "Sequence[FontEntry]":
    """Return the upright fonts of matplotlib and the system: DejaVu Sans first, regular fonts before bold ones.

    Last-resort fonts, which draw the same glyph for all characters of a script, are excluded.
    """
    from matplotlib.font_manager import fontManager  # noqa: PLC0415  (the import takes 0.5 s)

    upright = [
        font
        for font in fontManager.ttflist
        if font.style == "normal" and "lastresort" not in font.name.lower().replace(" ", "")
    ]
    return sorted(upright, key=lambda font: (font.name != _FIRST, font.weight != 400, font.name, font.fname))


def _draws(path: str, letter: str) -> bool:
    """Return whether a font has an outline for a character. Color fonts have empty outlines."""
    if ord(letter) not in _charmap(path):
        return False
    try:
        return letter.isspace() or _face(path).load_char(ord(letter)).width > 0
    except RuntimeError:
        return False


@cache
def _charmap(path: str) -> frozenset[int]:
    try:
        return frozenset(_face(path).get_charmap())
    except (RuntimeError, OSError):
        return frozenset()


@lru_cache(maxsize=32)
def _face(path: str) -> "FT2Font":
    from matplotlib.ft2font import FT2Font  # noqa: PLC0415

    return FT2Font(path)
