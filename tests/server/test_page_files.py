"""Files that are given to the page: used, removed again, or named with the reason why they are not used."""

import base64
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from diptych.images.formats import remedy
from diptych.inference.loaded import LoadedBundle
from diptych.search.collection import open_or_create, update
from diptych.server.app import create_app
from tests.server.browsing import check_accessible, keep, opened
from tests.server.site import Site, served


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """A file that is named as a picture and is none."""
    path = tmp_path / "bad.png"
    path.write_bytes(b"this is text")
    return path


def test_a_picture_that_cannot_be_used_does_not_block_the_others(
    page: Page, pictures: Path, bad: Path, clip: LoadedBundle
) -> None:
    good = sorted(pictures.iterdir())[:2]
    page.click("#tab-classes")
    page.fill("#names", "red\nblue")
    page.set_input_files("#class-files", [good[0], bad, good[1]])
    expect(page.locator("#class-status")).to_have_text("2 pictures, 2 classes; 1 cannot be used")
    cards = page.locator(".answer")
    expect(cards).to_have_count(3)
    expect(cards.nth(1)).to_contain_text("bad.png")
    expect(cards.nth(1)).to_contain_text("Cannot be used: ")
    for number, path in ((0, good[0]), (2, good[1])):
        (known,) = clip.classify([path], ["red", "blue"], templates=["a photo of {}"])
        expect(cards.nth(number)).to_contain_text(path.name)
        expect(cards.nth(number)).to_contain_text(f"{100 * known.scores[0].probability:.1f} %")
    check_accessible(page)
    keep(page, "classes-bad")
    page.get_by_label("Remove bad.png").click()
    expect(page.locator("#class-status")).to_have_text("2 pictures, 2 classes")


def test_pictures_are_removed_in_classes(page: Page, pictures: Path) -> None:
    some = sorted(pictures.iterdir())[:3]
    page.click("#tab-classes")
    page.set_input_files("#class-files", some)
    cards = page.locator(".answer")
    expect(cards.locator("ul")).to_have_count(3)
    page.get_by_label(f"Remove {some[1].name}").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#class-status")).to_have_text("2 pictures, 4 classes")
    assert [text.split("\n")[0] for text in cards.all_inner_texts()] == [some[0].name, some[2].name]
    assert page.evaluate("document.activeElement.ariaLabel") == f"Remove {some[2].name}"  # The focus stays in the list.
    page.get_by_role("button", name="Remove all").click()
    expect(cards).to_have_count(0)
    expect(page.locator("#class-status")).to_have_text("Choose, drop or paste pictures.")


_DROP = """files => {
    const data = new DataTransfer();
    for (const { name, type, content, size } of files) {
        const bytes = content ? Uint8Array.from(atob(content), (c) => c.charCodeAt(0)) : new Uint8Array(size);
        data.items.add(new File([bytes], name, { type }));
    }
    for (const kind of ["dragenter", "dragover", "drop"])
        dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
}"""


def test_files_that_are_not_used_are_named(page: Page, pictures: Path) -> None:
    content = base64.b64encode(sorted(pictures.iterdir())[0].read_bytes()).decode()
    page.evaluate(
        _DROP,
        [
            {"name": "report.pdf", "type": "application/pdf", "size": 9},
            {"name": "empty.png", "type": "image/png", "size": 0},
            {"name": "huge.png", "type": "image/png", "size": 21 * 2**20},
            {"name": "noise.png", "type": "image/png", "size": 40},
            *({"name": f"{name}.png", "type": "image/png", "content": content} for name in "abcd"),
        ],
    )
    expect(page.locator("#terms li")).to_have_count(3)
    unused = page.locator("#unused li")
    expect(unused).to_have_count(5)
    for number, said in enumerate(
        ("report.pdf: not a picture (application/pdf)", "empty.png: empty", "huge.png: larger than 20 MiB")
    ):
        expect(unused.nth(number)).to_have_text(said)
    expect(unused.nth(3)).to_contain_text("d.png: a search takes 4 pictures at once")
    expect(unused.nth(4)).to_contain_text("noise.png: ")  # The server cannot read it; the others are searched for.
    expect(page.locator("#grid .tile").first).to_contain_text("1.000")
    check_accessible(page)
    keep(page, "unused")
    page.get_by_label("Close the list of files").click()
    expect(unused).to_have_count(0)


def test_more_pictures_than_classes_take_are_named(page: Page, pictures: Path) -> None:
    page.click("#tab-classes")
    page.set_input_files("#class-files", sorted(pictures.iterdir())[:34])
    expect(page.locator("#class-status")).to_have_text("32 pictures, 4 classes")
    last = [path.name for path in sorted(pictures.iterdir())[32:34]]
    expect(page.locator("#unused li")).to_have_text(f"{', '.join(last)}: there are at most 32 pictures; remove some")


def test_the_footer_tells_what_could_not_be_read_and_what_was_left_out(
    browser: Browser, clip: LoadedBundle, pictures: Path, bad: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    for path in (bad, min(pictures.iterdir())):
        shutil.copy(path, folder)
    (folder / "draft.psd").write_bytes(b"8BPS")
    said: list[str] = []
    with open_or_create(tmp_path / "index", clip) as index, browser.new_context() as context:
        update(index, clip, [folder])
        with served(create_app(clip, index)) as own:
            info = own.ask("GET", "/v1/info").json
            assert info["unreadable"] == 1
            assert info["left_out"] == [{"suffix": ".psd", "num": 1, "remedy": remedy(".psd")}]
            page = opened(context, said, own.url)
            expect(page.locator("#about")).to_contain_text(
                f"1 picture, 1 file could not be read; left out: 1 .psd ({remedy('.psd')})"
            )
    assert said == []


def test_the_problem_has_the_position_of_a_picture(site: Site, pictures: Path) -> None:
    good = base64.b64encode(sorted(pictures.iterdir())[0].read_bytes()).decode()
    bad = base64.b64encode(b"this is text").decode()
    for path, body in (
        ("/v1/classify", {"images": [good, bad], "classes": ["a", "b"]}),
        ("/v1/embed", {"images": [good, bad]}),
        ("/v1/search", {"terms": [{"image": good}, {"text": "a"}, {"image": bad}]}),
    ):
        answer = site.ask("POST", path, body)
        assert answer.status == 422
        assert answer.json["image"] == 1
        assert answer.json["detail"] == f"a picture cannot be used: number 2: {answer.json['reason']}"
