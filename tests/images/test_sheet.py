"""Text of contact sheets: it fits, it is as long as it can be, and long texts cost no more than short ones."""

from unittest.mock import patch

import pytest
from PIL import Image, ImageFont

from diptych.images import sheet
from diptych.images.sheet import SheetRow, contact_sheet

FONT = ImageFont.load_default(13)
WIDTH = 150


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines of text that are drawn, headings among them."""
    lines: list[str] = []
    monkeypatch.setattr(sheet, "draw_line", lambda _draw, _place, text, *_, **__: lines.append(text))
    return lines


def _draw(caption: str, *, lines: int = 1, heading: str = "") -> None:
    tile = Image.new("RGB", (8, 8))
    contact_sheet([SheetRow(heading, [(tile, caption)])], tile_px=WIDTH, caption_lines=lines)


def _fit_letter_by_letter(text: str) -> str:
    if FONT.getlength(text) <= WIDTH:
        return text
    while text and FONT.getlength(text + "…") > WIDTH:
        text = text[:-1]
    return text.rstrip() + "…"


@pytest.mark.parametrize("text", ["a dog", "W" * 90, "il" * 60, "a dog runs over wet grass and barks " * 3, "x " * 80])
def test_a_line_is_as_long_as_it_can_be(text: str, drawn: list[str]) -> None:
    _draw(text)
    assert drawn == ["", _fit_letter_by_letter(text.strip())]


def test_words_are_kept_whole_and_the_last_line_is_shortened(drawn: list[str]) -> None:
    text = "a brown dog runs over the wet grass and barks at a cat on a wall " * 3
    _draw(text, lines=4)
    _, *lines = drawn
    assert len(lines) == 4
    assert all(FONT.getlength(line) <= WIDTH for line in lines)
    assert lines[3].endswith("…")
    assert text.startswith(" ".join([*lines[:3], lines[3][:-1]]))
    for short, expected in (("a dog", ["a dog"]), ("", [])):
        drawn.clear()
        _draw(short, lines=4)
        assert drawn == ["", *expected]


@pytest.mark.parametrize("text", ["word " * 20_000, "x" * 100_000, "\u0301" * 100_000, "a  " * 50_000])
def test_little_of_a_long_text_is_measured(text: str, drawn: list[str]) -> None:
    with patch.object(
        ImageFont.FreeTypeFont, "getlength", autospec=True, side_effect=lambda self, text: len(text) * 6
    ) as measure:
        _draw(text, lines=4, heading=text)
    assert 1 < len(drawn) <= 5
    measured = sum(len(call.args[1]) for call in measure.call_args_list)
    assert measured < 100 * WIDTH


def test_a_sheet_of_long_captions_is_drawn() -> None:
    tile = Image.new("RGB", (8, 8))
    rows = [SheetRow("h" * 5000, [(tile, "word " * 800), (tile, "x" * 4000)])]
    assert contact_sheet(rows, tile_px=60, caption_lines=4).size[0] == 2 * 24 + 2 * 60 + 12
