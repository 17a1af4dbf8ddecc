"""Folders that tell a measurement."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from diptych.bundle.folder import add_evaluation, load_bundle
from diptych.core.errors import ConfigError
from diptych.data.open_source import open_source
from diptych.data.sources.subset import Subset
from diptych.evaluation.compare import compare_zero_shot
from diptych.evaluation.encoded import SourceEncoder
from diptych.evaluation.rendering import (
    render_comparison,
    render_retrieval,
    render_robustness,
    render_zero_shot,
    spread,
)
from diptych.evaluation.report import Report, Section, write_report
from diptych.evaluation.retrieval import evaluate_retrieval
from diptych.evaluation.robustness import evaluate_robustness
from diptych.evaluation.tables import Table
from diptych.evaluation.zero_shot import evaluate_zero_shot
from diptych.inference.loaded import LoadedBundle

SHAPES = Subset(open_source("shapes:200"), range(60))


class _Page(HTMLParser):
    """Which tags are open, and what the page refers to."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.alternatives: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        given = dict(attrs)
        self.sources += [value for name, value in given.items() if name in {"src", "href"} and value]
        if tag == "img":
            self.alternatives.append(given.get("alt") or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _reports(clip: LoadedBundle, flickr_folder: Path) -> list[Report]:
    encoder = SourceEncoder(clip.embedder)
    one, two = (evaluate_zero_shot(encoder, SHAPES, split="x", templates=(text,)) for text in ("a {}", "zz {}"))
    found = evaluate_retrieval(encoder, open_source(f"flickr30k:{flickr_folder}"), split="all")
    robust = evaluate_robustness(encoder, SHAPES, split="x", templates=("a {}",), disturbances=("blur",))
    return [
        render_zero_shot(one),
        render_retrieval(found),
        render_robustness(robust),
        render_comparison(compare_zero_shot(["one", "two"], [one, two])),
    ]


@pytest.mark.filterwarnings("ignore:texts longer than 24 tokens")
def test_a_page_is_whole_and_asks_for_nothing(clip: LoadedBundle, flickr_folder: Path, tmp_path: Path) -> None:
    for number, report in enumerate(_reports(clip, flickr_folder)):
        folder = tmp_path / str(number)
        write_report(report, folder)
        page = _Page((folder / "report.html").read_text(encoding="utf-8"))
        assert page.open == []
        assert page.sources
        assert all(source.startswith("data:image/png;base64,") for source in page.sources)
        assert all(page.alternatives)
        for section in report.sections:
            for picture in section.pictures:
                with Image.open(folder / f"{picture.name}.png") as image:
                    assert min(image.size) > 100
        content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        assert content["setting"]["torch"]
        assert content["setting"]["split_hash"] == report.protocol["split_hash"]
        assert content["figures"]["protocol"]["split"] == report.protocol["split"]


def test_what_a_page_shows_is_text(tmp_path: Path) -> None:
    nasty = "<script>alert(1)</script>"
    table = Table([nasty, "b"], [[nasty, "1"]])
    report = Report(
        title=nasty, summary="", metrics={}, protocol={nasty: nasty}, sections=[Section(nasty, nasty, tables=[table])]
    )
    write_report(report, tmp_path / "report")
    text = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert _Page(text).open == []
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_report(report, tmp_path / "file" / "report")


def test_a_card_keeps_the_last_of_each_evaluation(clip: LoadedBundle, tmp_path: Path) -> None:
    from diptych.bundle.folder import require_bundle, save_bundle

    bundle = tmp_path / "bundle"
    save_bundle(require_bundle(clip.bundle), bundle)
    for share in ("10 %", "20 %"):
        add_evaluation(bundle, "Zero-shot on val, shapes", summary=f"top 1 {share}", protocol={"split_hash": "abc"})
    add_evaluation(bundle, "Retrieval on val, shapes", summary="R@1 5 %", protocol={"images": 3})
    card = (bundle / "README.md").read_text(encoding="utf-8")
    assert card.count("## Measured") == 1
    assert re.findall(r"^- (.*)$", card.partition("## Measured")[2], re.MULTILINE) == [
        "Zero-shot on val, shapes: top 1 20 %",
        "Retrieval on val, shapes: R@1 5 %",
    ]
    assert "split hash abc" in card
    assert load_bundle(bundle).metrics["evaluations"]["Retrieval on val, shapes"]["summary"] == "R@1 5 %"


def test_items_are_spread() -> None:
    assert spread(range(3), 5) == [0, 1, 2]
    assert spread(range(100), 3) == [0, 49, 99]
