"""Reports whose every text is an attack on the page: names of classes, captions, bundles, data, pictures."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from diptych.data.open_source import open_source
from diptych.data.sources.subset import Subset
from diptych.evaluation.compare import compare_retrieval, compare_zero_shot
from diptych.evaluation.encoded import SourceEncoder
from diptych.evaluation.probe import KnnReport, ProbeReport
from diptych.evaluation.rendering import (
    render_comparison,
    render_knn,
    render_probe,
    render_retrieval,
    render_robustness,
    render_zero_shot,
)
from diptych.evaluation.report import Picture, Report, png_of, write_report
from diptych.evaluation.retrieval import evaluate_retrieval
from diptych.evaluation.robustness import evaluate_robustness
from diptych.evaluation.zero_shot import evaluate_zero_shot
from diptych.inference.loaded import LoadedBundle

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ATTACKS = (
    "<script>owned=1</script>",
    '" onerror="owned=1" x="',
    "' onmouseover='owned=1",
    "</title></dd></td></figcaption><script>owned=1</script><img src=x onerror=owned=1>",
    "<svg onload=owned=1><a href=javascript:owned=1>",
    "{{ 7*7 }}{% if %}{# #} $x_{$",
    "javascript:owned=1",
    "<!-- ]]> \u202e \x1b[2J &lt;script&gt;",
    "<meta http-equiv=refresh content='0;url=data:text/html,owned'><base href=//owned.example>",
)
ATTACK = "".join(ATTACKS)


class _Tags(HTMLParser):
    """Every element with the names of its attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, ...]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, *(name for name, _ in attrs)))
        self.texts += [value for name, value in attrs if name == "alt" and value]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")


def _attacked(value: Any) -> Any:
    """The same with the attack behind every text, but for the names of files."""
    match value:
        case str():
            return value and value + ATTACK  # A paragraph that is empty is left out.
        case Picture():
            return replace(value, shows=value.shows + ATTACK)
        case dict():
            return {_attacked(name): _attacked(inside) for name, inside in value.items()}
        case list() | tuple():
            return [_attacked(inside) for inside in value]
        case _ if is_dataclass(value) and not isinstance(value, type):
            inside = {field.name: _attacked(getattr(value, field.name)) for field in fields(value)}
            return type(value)(**inside)
    return value


def _drawn_small(report: Report) -> Report:
    """With pictures that need no drawing."""
    png = png_of(Image.new("RGB", (2, 2)))
    sections = [
        replace(section, pictures=[replace(picture, draw=lambda: png) for picture in section.pictures])
        for section in report.sections
    ]
    return replace(report, sections=sections)


@pytest.fixture
def reports(clip: LoadedBundle, flickr_folder: Path) -> list[Report]:
    """One of each command and kind of data."""
    encoder = SourceEncoder(clip.embedder)
    shapes = Subset(open_source("shapes:200"), range(30))
    flickr = open_source(f"flickr30k:{flickr_folder}")
    one, two = (evaluate_zero_shot(encoder, shapes, split="x", templates=(text,)) for text in ("a {}", "zz {}"))
    found = evaluate_retrieval(encoder, flickr, split="all")
    shares = {"top1": 0.5, "mean_per_class": 0.5}
    protocol: dict[str, str | int] = {"split": "x", "images": 30, "chosen_on": "a tenth"}
    return [
        render_zero_shot(one),
        render_retrieval(found),
        render_probe(ProbeReport(**shares, c=1.0, sweep={1.0: 0.5}, protocol=protocol)),
        render_knn(KnnReport(**shares, protocol=protocol)),
        render_robustness(evaluate_robustness(encoder, shapes, split="x", templates=("a {}",), disturbances=("blur",))),
        render_robustness(evaluate_robustness(encoder, flickr, split="all", disturbances=("noise",))),
        render_comparison(compare_zero_shot(["one", "two"], [one, two])),
        render_comparison(compare_zero_shot(["one", "two", "three"], [one, two, one])),
        render_comparison(compare_retrieval(["one", "two"], [found, found])),
    ]


def _write(reports: Sequence[Report], folder: Path) -> list[Path]:
    for number, report in enumerate(reports):
        about: dict[str, str | int] = {"bundle": "b", "data": "d", "number": number}
        write_report(replace(_attacked(replace(_drawn_small(report), metrics={}, about=about))), folder / str(number))
    return [folder / str(number) / "report.html" for number in range(len(reports))]


@pytest.mark.filterwarnings("ignore:texts longer than 24 tokens")
def test_an_attack_adds_no_element_and_no_attribute(reports: list[Report], tmp_path: Path) -> None:
    for number, (report, path) in enumerate(zip(reports, _write(reports, tmp_path / "attacked"), strict=True)):
        about: dict[str, str | int] = {"bundle": "b", "data": "d", "number": number}
        write_report(replace(_drawn_small(report), about=about), tmp_path / "plain" / str(number))
        plain = _Tags((tmp_path / "plain" / str(number) / "report.html").read_text("utf-8"))
        attacked = _Tags(path.read_text("utf-8"))
        assert attacked.tags == plain.tags
        assert "".join(attacked.texts).count(ATTACK) > 10
        assert ("script",) not in {tag[:1] for tag in attacked.tags}


@pytest.mark.filterwarnings("ignore:texts longer than 24 tokens")
def test_names_of_classes_go_through_plots_and_sheets(clip: LoadedBundle, tmp_path: Path) -> None:
    shapes = Subset(open_source("shapes:200"), range(30))
    classes = [f"{number} {ATTACKS[number % len(ATTACKS)]}" for number in range(len(shapes.classes))]
    result = evaluate_zero_shot(
        SourceEncoder(clip.embedder), shapes, split="x", templates=("a {}",), classes=classes, all_must_occur=False
    )
    write_report(render_zero_shot(result), tmp_path)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "<script" not in page
    assert any(attack in "".join(_Tags(page).texts) for attack in ATTACKS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:texts longer than 24 tokens")
def test_a_browser_runs_nothing(reports: list[Report], tmp_path: Path, browser: "Browser") -> None:
    """Attacks run nothing, and neither would a script that escaped the template: the page's policy forbids all."""
    page, asked = browser.new_page(), list[str]()
    page.on("request", lambda request: asked.append(request.url.partition(",")[0]))
    page.on("dialog", lambda dialog: asked.append(dialog.message))
    for path in _write(reports, tmp_path):
        asked.clear()
        page.goto(path.as_uri())
        page.mouse.move(300, 300)
        assert page.evaluate("typeof owned") == "undefined"
        assert {url for url in asked if not url.startswith("data:image/png")} == {path.as_uri()}
        assert page.eval_on_selector_all("img", "all => all.every((one) => one.naturalWidth > 0)")
        assert page.evaluate("getComputedStyle(document.querySelector('table, dl')).display") in {"block", "grid"}
        text = path.read_text("utf-8").replace("</h1>", f"</h1>{ATTACKS[0]}<img src=x onerror=owned=1>", 1)
        path.write_text(text, "utf-8")
        page.goto(path.as_uri())
        assert page.locator("script").count() == 1
        assert page.evaluate("typeof owned") == "undefined"
    page.close()
