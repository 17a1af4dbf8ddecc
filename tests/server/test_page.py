"""The page in a real browser: Debian's Chromium, driven by playwright."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.sync_api import Browser, Page, expect

from diptych.index.protocol import Index
from diptych.inference.loaded import LoadedBundle
from diptych.server.app import create_app
from diptych.server.runs import create_runs_app
from tests.server.browsing import check_accessible, ids, keep, opened
from tests.server.site import Site, served


def test_it_answers_while_one_types(page: Page, clip: LoadedBundle, index: Index) -> None:
    expect(page.locator("#notice")).to_contain_text("Search by words or by pictures")
    page.locator("#text").press_sequentially("a red circle", delay=20)
    expect(page.locator("#status")).to_contain_text("40 pictures so far")
    (expected,) = index.search(clip.encode_texts(["a red circle"]), top=40)
    assert ids(page) == [one.entry.digest for one in expected]
    assert page.url.endswith("?q=a+red+circle")
    page.locator("#more").scroll_into_view_if_needed()
    expect(page.locator("#grid .tile")).to_have_count(48)  # More came as the end was seen.
    expect(page.locator("#more")).to_be_hidden()
    keep(page, "search")


def test_a_search_is_shared_by_its_address(browser: Browser, site: Site, index: Index) -> None:
    known = index.entries()[5].digest
    said: list[str] = []
    with browser.new_context() as context:
        page = opened(context, said, f"{site.url}/?q=a+circle&where=width+%3E+60&like={known}*-0.5&like=..%2F*1&like=x")
        expect(page.locator("#grid .tile")).not_to_have_count(0)
        assert page.locator("#text").input_value() == "a circle"
        assert page.locator("#where").input_value() == "width > 60"
        assert page.get_by_label("Weight of less like this").input_value() == "-0.5"
        assert page.locator("#terms li").count() == 1
    assert said == []


def expect_nearest(page: Page, index: Index, vector: NDArray[np.float32]) -> None:
    """The pictures come in the order in which the index has them."""
    ((first, *_),) = index.search((vector / np.linalg.norm(vector))[None].astype(np.float32), top=1)
    page.wait_for_function("id => document.querySelector('#grid img')?.src.includes(id)", arg=first.entry.digest)


def test_more_and_less_like_this(page: Page, clip: LoadedBundle, index: Index) -> None:
    text = clip.encode_texts(["a circle"])[0]
    page.fill("#text", "a circle")
    expect_nearest(page, index, text)
    last = ids(page)[-1]
    liked = index.vectors([last])[last]
    page.get_by_role("button", name="More like").last.click()
    expect(page.locator("#terms li.more")).to_have_count(1)
    expect_nearest(page, index, text + liked)
    chosen = page.get_by_label("Weight of more like this")
    chosen.fill("-2")
    chosen.press("Enter")
    expect(page.locator("#terms li.less")).to_have_count(1)
    expect_nearest(page, index, text - 2 * liked)
    page.get_by_label("Remove less like this").click()
    expect(page.locator("#terms li")).to_have_count(0)
    expect_nearest(page, index, text)
    page.get_by_role("button", name="Less like").first.click()
    expect(page.locator("#terms li.less")).to_have_count(1)


def test_search_by_a_picture_that_is_dropped(page: Page, pictures: Path, index: Index) -> None:
    picture = sorted(pictures.iterdir())[9]
    content = list(picture.read_bytes())
    page.evaluate(
        """content => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(content)], "mine.png", { type: "image/png" }));
            for (const kind of ["dragenter", "dragover", "drop"])
                dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
        }""",
        content,
    )
    expect(page.locator("#terms li")).to_contain_text("mine.png")
    expect(page.locator("#grid .tile").first).to_contain_text("1.000")
    same = next(entry.digest for entry in index.entries() if entry.key == str(picture))
    assert ids(page)[0] == same
    page.set_input_files("#picture-file", picture)
    expect(page.locator("#terms li")).to_have_count(2)


def test_detail_with_its_heat(page: Page) -> None:
    page.fill("#text", "a blue circle")
    page.locator("#grid .open").first.click()
    dialog = page.locator("#detail")
    expect(dialog).to_be_visible()
    name = page.locator("#detail-name").inner_text()
    page.get_by_role("button", name="What speaks for").click()
    expect(page.locator("#detail-picture.heat")).to_have_js_property("complete", True)
    page.wait_for_function("() => document.querySelector('#detail-picture').naturalWidth === 32")
    check_accessible(page)
    keep(page, "detail")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#detail-name")).not_to_have_text(name)
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()


def test_by_keyboard_alone(page: Page) -> None:
    page.keyboard.press("/")
    page.keyboard.type("a green circle")
    expect(page.locator("#grid .tile")).to_have_count(40)
    while page.evaluate("document.activeElement.className") != "open":
        page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#detail")).to_be_visible()
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.className") == "open"  # Where one was.
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#terms li.more")).to_have_count(1)
    page.locator("#tab-search").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#classes")).to_be_visible()


def test_classes(page: Page, pictures: Path, clip: LoadedBundle) -> None:
    some = sorted(pictures.iterdir())[:2]
    page.click("#tab-classes")
    page.fill("#names", "red\nblue\ngreen")
    page.fill("#template", "a {} circle")
    page.set_input_files("#class-files", some)
    expect(page.locator(".answer")).to_have_count(2)
    expect(page.locator("#class-status")).to_have_text("2 pictures, 3 classes")
    best = clip.classify(some, ["red", "blue", "green"], templates=["a {} circle"])[0].scores[0]
    expect(page.locator(".answer").first.locator(".name").first).to_have_text(best.name)
    expect(page.locator(".answer").first).to_contain_text(f"{100 * best.probability:.1f} %")
    page.fill("#template", "no place")
    expect(page.locator("#class-status")).to_contain_text("has no {}")
    check_accessible(page)


def test_a_filter_that_cannot_be_read_is_explained(browser: Browser, site: Site) -> None:
    with browser.new_context() as context:
        page = opened(context, [], site.url)
        page.click("#filters summary")
        page.fill("#text", "a circle")
        page.fill("#where", "colour = 3")
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_contain_text("colour")


def test_a_server_that_has_gone(browser: Browser, clip: LoadedBundle, index: Index) -> None:
    with browser.new_context() as context:
        with served(create_app(clip, index)) as own:
            page = opened(context, [], own.url)
            expect(page.locator("#state-text")).to_have_text("Ready")
        page.fill("#text", "a circle")
        expect(page.locator("#notice.bad")).to_contain_text("cannot be reached")
        expect(page.get_by_role("button", name="Try again")).to_be_visible()
        expect(page.locator("#state-text")).to_contain_text("cannot be reached")
        keep(page, "gone")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_and_can_be_read(browser: Browser, site: Site, scheme: str, width: int) -> None:
    dark = "dark" if scheme == "dark" else "light"
    said: list[str] = []
    with browser.new_context(
        viewport={"width": width, "height": 740},
        color_scheme="dark" if dark == "dark" else "light",
        reduced_motion="reduce",
    ) as context:
        page = opened(context, said, f"{site.url}/?q=a+circle")
        expect(page.locator("#grid .tile")).not_to_have_count(0)
        page.get_by_role("button", name="More like").first.click()
        expect(page.locator("#terms li")).to_have_count(1)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        check_accessible(page)
        keep(page, f"{scheme}-{width}")
    assert said == []


def test_nothing_is_fetched_from_elsewhere(browser: Browser, site: Site) -> None:
    asked: list[str] = []
    with browser.new_context() as context:
        context.on("request", lambda request: asked.append(request.url))
        page = opened(context, [], f"{site.url}/?q=a+circle")
        expect(page.locator("#grid .tile")).not_to_have_count(0)
    assert asked
    assert all(url.startswith((site.url, "data:", "blob:")) for url in asked)


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_of_runs(browser: Browser, finished_run: Path, tmp_path: Path, width: int) -> None:
    for name in ("first", "second"):
        shutil.copytree(finished_run, tmp_path / name)
    config = tmp_path / "second" / "config.yaml"
    config.write_text(config.read_text().replace("batch_size: 16", "batch_size: 32"))
    said: list[str] = []
    with (
        served(create_runs_app(tmp_path)) as own,
        browser.new_context(viewport={"width": width, "height": 740}) as context,
    ):
        page = opened(context, said, own.url)
        expect(page.locator("#runs tr")).to_have_count(3)
        expect(page.locator("#curves figure").first).to_contain_text("loss")
        assert page.locator("#curves figure").first.locator("path").count() == 2
        expect(page.locator("#differences")).to_contain_text("batch_size")
        expect(page.locator("#samples img")).to_have_count(2)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        check_accessible(page)
        keep(page, f"runs-{width}")
        page.get_by_role("checkbox", name="second").uncheck()
        expect(page.locator("#differences")).to_contain_text("Choose two runs")
    assert said == []
