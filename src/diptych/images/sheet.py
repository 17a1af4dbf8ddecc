"""Contact sheets: rows of captioned images, each row under a heading."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageOps

from diptych.images.fonts import Font, draw_line, drawable, font_for

_PAPER, _INK, _FAINT, _RULE = (255, 255, 255), (30, 30, 30), (120, 120, 120), (225, 225, 225)
_MARGIN, _GAP, _HEADING, _CAPTION = 24, 12, 34, 22
_CHARACTERS_PER_PX = 2
"""Limits how much of a long text is measured: visible characters are wider than half a pixel."""


@dataclass(frozen=True)
class SheetRow:
    """A heading and the images under it, each with its caption."""

    heading: str
    pictures: Sequence[tuple[Image.Image, str]]


def contact_sheet(
    rows: Sequence[SheetRow], *, tile_px: int = 150, columns: int | None = None, caption_lines: int = 1
) -> Image.Image:
    """Return one image of all rows. A row with more than `columns` images continues on the next line.

    Images keep their aspect ratio. Captions have up to `caption_lines` lines and are shortened if they are longer.

    Args:
        rows: headings and images.
        tile_px: side of the square that each image is fitted into.
        columns: images per line; by default, as many as the longest row has.
        caption_lines: lines per caption.
    """
    columns = columns or max(1, *(len(row.pictures) for row in rows))
    lines = [-(-len(row.pictures) // columns) for row in rows]
    width = 2 * _MARGIN + columns * tile_px + (columns - 1) * _GAP
    step = tile_px + caption_lines * _CAPTION + _GAP
    height = 2 * _MARGIN + sum(_HEADING + n * step for n in lines)
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    letters = "".join(text for row in rows for text in (row.heading, *(caption for _, caption in row.pictures)))
    heading_font, caption_font = font_for(letters, 18), font_for(letters, 13)
    top = _MARGIN
    for row, num_lines in zip(rows, lines, strict=True):
        heading = _fit(drawable(row.heading), width - 2 * _MARGIN, heading_font)
        draw_line(draw, (_MARGIN, top), heading, heading_font, fill=_INK)
        top += _HEADING
        for number, (picture, caption) in enumerate(row.pictures):
            left = _MARGIN + (number % columns) * (tile_px + _GAP)
            upper = top + (number // columns) * step
            _paste(sheet, picture, left, upper, tile_px)
            shown = drawable(" ".join(caption.split()))
            for line, text in enumerate(_wrap(shown, tile_px, caption_font, caption_lines)):
                position = (left, upper + tile_px + 3 + line * _CAPTION)
                draw_line(draw, position, text, caption_font, fill=_FAINT)
        top += num_lines * step
    return sheet


def _paste(sheet: Image.Image, picture: Image.Image, left: int, upper: int, tile_px: int) -> None:
    small = min(picture.size) < tile_px
    fitted = ImageOps.contain(
        picture, (tile_px, tile_px), Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
    )
    x, y = left + (tile_px - fitted.width) // 2, upper + (tile_px - fitted.height) // 2
    sheet.paste(fitted, (x, y))
    ImageDraw.Draw(sheet).rectangle((left - 1, upper - 1, left + tile_px, upper + tile_px), outline=_RULE)


def _wrap(text: str, width: int, font: Font, max_lines: int) -> list[str]:
    """Return the text wrapped at spaces into at most `max_lines` lines; the last one is shortened if necessary."""
    lines: list[str] = []
    words = " ".join(text.split())[: max_lines * _CHARACTERS_PER_PX * width].split()
    while words and len(lines) < max_lines - 1:
        count = max(1, _num_fitting(words, width, font))
        lines.append(_fit(" ".join(words[:count]), width, font))
        words = words[count:]
    return [*lines, _fit(" ".join(words), width, font)] if words else lines


def _num_fitting(words: Sequence[str], width: int, font: Font) -> int:
    return _most(len(words), lambda n: font.getlength(" ".join(words[:n])) <= width)


def _fit(text: str, width: int, font: Font) -> str:
    """Return the text, shortened to fit into `width` pixels."""
    text, whole = text[: _CHARACTERS_PER_PX * width], len(text)
    if len(text) == whole and font.getlength(text) <= width:
        return text
    return text[: _most(len(text), lambda n: font.getlength(text[:n] + "…") <= width)].rstrip() + "…"


def _most(limit: int, fits: Callable[[int], bool]) -> int:
    """Return the largest number from 1 to `limit` that fits, or 0 if none does. If a number fits, all smaller ones must fit."""
    return bisect_left(range(1, limit + 1), True, key=lambda n: not fits(n))
