"""Texts from outside in plots and on sheets: as they are written, whatever letters they have. Warnings are errors here."""

from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from diptych.evaluation.plots import plot_confusion
from diptych.images import fonts
from diptych.images.fonts import draw_line, drawable, font_for, plot_text
from diptych.images.sheet import SheetRow, contact_sheet
from diptych.inference.similarity import Similarity
from diptych.training.config import TrainConfig
from diptych.tuning.plots import plot_importances, plot_parallel
from diptych.tuning.space import Dimension, Space
from diptych.tuning.study import Row

HOSTILE = ["$x_{$", "$", "\\frac{$a$", "\udcff\udcfe.png", "a\nb\x1b[1m", "狗", "\U0001f415\ufe0f", "كلب", "café", ""]


@pytest.fixture(autouse=True)
def _fonts_of_matplotlib_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever is installed here: DejaVu, and the font of last resort where there is one."""
    own = [font for font in font_manager.fontManager.ttflist if "matplotlib" in font.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    _forget()
    yield
    _forget()


def _forget() -> None:
    fonts._fonts.cache_clear()
    fonts._found_font.cache_clear()


@pytest.fixture
def dog_font(tmp_path: Path) -> None:
    """A font of the system with one letter, a block: U+72D7."""
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for corner in ((900, 0), (900, 700), (100, 700)):
        pen.lineTo(corner)
    pen.closePath()
    empty = TTGlyphPen(None).glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "dog"])
    builder.setupCharacterMap({0x72D7: "dog"})
    builder.setupGlyf({".notdef": empty, "dog": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "dog": (1000, 100)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Dog Sans", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "dog.ttf")
    font_manager.fontManager.addfont(tmp_path / "dog.ttf")
    _forget()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a $dog$_{", "a $dog$_{"),
        ("狗 dog", "□ dog"),
        ("\U0001f415\ufe0f\u200d\U0001f9ba", "□□"),
        ("кошка كلب ẹ", "кошка كلب ẹ"),
        ("\udcff.png", r"\udcff.png"),
        ("a\nb\x1b", r"a\nb\x1b"),
        ("", ""),
    ],
)
def test_what_no_font_has_is_replaced_visibly(text: str, shown: str) -> None:
    assert drawable(text) == shown
    assert drawable(shown) == shown


@pytest.mark.usefixtures("dog_font")
def test_a_font_that_has_the_letter_is_used() -> None:
    assert drawable("狗狼") == "狗□"
    shown, style = plot_text(["狗狼", "a" * 50], most=40)
    assert shown == ["狗□", "a" * 39 + "…"]
    assert style["fontfamily"][-1] == "Dog Sans"
    assert not style["parse_math"]


def _confusion(name: str) -> np.ndarray:
    picture = plot_confusion(np.eye(2, dtype=np.int64), [name, "cat"])
    return np.asarray(Image.open(BytesIO(picture)).convert("L"))


def _sheet(name: str) -> np.ndarray:
    return np.asarray(contact_sheet([SheetRow(f"é {name}", [(Image.new("RGB", (8, 8)), name)])]).convert("L"))


@pytest.mark.parametrize("draw", [_confusion, _sheet])
def test_pictures_show_the_letter_or_the_placeholder(
    draw: Callable[[str], np.ndarray], request: pytest.FixtureRequest
) -> None:
    placeholder = draw("□")
    assert np.array_equal(draw("狗"), placeholder)
    request.getfixturevalue("dog_font")
    letter = draw("狗")
    assert letter.shape != placeholder.shape or (letter < 128).sum() > (placeholder < 128).sum() + 20


def test_a_line_of_several_fonts_is_as_wide_as_it_is_measured() -> None:
    draw = ImageDraw.Draw(picture := Image.new("L", (400, 40), 255))
    text = "naïve □ кошка"
    font = font_for(text, 18)
    draw_line(draw, (10, 5), text, font, fill=0)
    columns = np.flatnonzero((np.asarray(picture) < 200).any(axis=0))
    assert 10 <= columns[0] < 14
    assert abs(columns[-1] - (10 + font.getlength(text))) < 4


def test_ascii_is_drawn_as_before() -> None:
    before, now = Image.new("L", (300, 30)), Image.new("L", (300, 30))
    ImageDraw.Draw(before).text((3, 4), "a brown dog…", fill=255, font=ImageFont.load_default(13))
    draw_line(ImageDraw.Draw(now), (3, 4), "a brown dog…", font_for("a brown dog…", 13), fill=255)
    assert before.tobytes() == now.tobytes()


def test_every_plot_takes_any_name(tiny_run: TrainConfig, tmp_path: Path) -> None:
    num = len(HOSTILE)
    plot_confusion(np.eye(num, dtype=np.int64), HOSTILE)
    cosine = np.zeros((num, num), dtype=np.float32)
    similar = Similarity(images=tuple(HOSTILE), texts=tuple(HOSTILE), cosine=cosine, probability=cosine)
    for suffix in ("png", "pdf", "svg"):
        similar.plot(tmp_path / f"matrix.{suffix}")
    plot_importances(dict.fromkeys(HOSTILE, 0.1), tmp_path / "importances.png")
    by_name = [Dimension(name=name, fields=("optimizer.lr",), low=0.0, high=1.0) for name in HOSTILE]
    space = Space(tiny_run, (Dimension(name="source $", fields=("data.source",), choices=tuple(HOSTILE)), *by_name))
    rows = [
        Row(
            number=number,
            state="done",
            score=number / num,
            settings={"source $": choice, **dict.fromkeys(HOSTILE, 0.5)},
            reason=None,
            is_recipe=False,
            repeat_of=None,
            seed=None,
            seconds=None,
            worker=None,
        )
        for number, choice in enumerate(HOSTILE)
    ]
    plot_parallel(rows, space, "map", tmp_path / "parallel.png")
    contact_sheet([SheetRow(name, [(Image.new("RGB", (8, 8)), name)]) for name in HOSTILE], caption_lines=2)
