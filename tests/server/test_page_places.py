"""Back and Forward, addresses, and moving among more hits than one page has."""

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import Browser, Page, expect

from diptych.index.protocol import Index
from diptych.inference.loaded import LoadedBundle
from tests.server.browsing import check_accessible, ids, keep, opened
from tests.server.site import Site


def asked(page: Page) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).query)


def test_back_and_forward(page: Page) -> None:
    page.fill("#text", "a red circle")
    expect(page.locator("#grid .tile")).to_have_count(40)
    red = ids(page)
    page.get_by_role("button", name="More like").last.click()
    expect(page.locator("#terms li.more")).to_have_count(1)
    page.click("#filters summary")
    page.fill("#where", "width > 80")
    page.keyboard.press("Enter")
    expect(page.locator("#grid .tile")).to_have_count(15)
    page.click("#tab-classes")
    assert page.url.endswith("#classes")

    page.go_back()
    expect(page.locator("#search")).to_be_visible()
    expect(page.locator("#grid .tile")).to_have_count(15)
    page.go_back()
    expect(page.locator("#grid .tile")).to_have_count(40)
    assert page.locator("#where").input_value() == ""
    assert page.locator("#terms li").count() == 1
    page.go_back()
    expect(page.locator("#terms li")).to_have_count(0)
    page.wait_for_function("id => document.querySelector('#grid img')?.src.includes(id)", arg=red[0])
    assert ids(page)[: len(red)] == red  # Scrolling may have loaded more.
    page.go_back()
    expect(page.locator("#notice")).to_contain_text("Search by words or by pictures")
    assert page.locator("#text").input_value() == ""
    for _ in range(4):
        page.go_forward()
    expect(page.locator("#classes")).to_be_visible()
    assert asked(page)["where"] == ["width > 80"]


def test_what_is_typed_at_once_is_one_place(page: Page) -> None:
    before = page.evaluate("history.length")
    page.locator("#text").press_sequentially("a red circle", delay=250)  # A search after each letter.
    expect(page.locator("#grid .tile")).to_have_count(40)
    assert page.evaluate("history.length") == before + 1
    page.keyboard.press("Enter")
    expect(page.locator("#grid")).to_have_attribute("aria-busy", "false")
    assert page.evaluate("history.length") == before + 1


def test_dropped_pictures_come_back(page: Page, pictures: Path) -> None:
    first, second = sorted(pictures.iterdir())[:2]
    for number, path in enumerate((first, second), start=1):
        page.set_input_files("#picture-file", path)
        expect(page.locator("#terms li")).to_have_count(number)
    expect(page.locator("#grid")).to_have_attribute("aria-busy", "false")
    page.go_back()
    expect(page.locator("#terms li")).to_have_text([first.name + "✕"])
    expect(page.locator("#grid .tile").first).to_contain_text("1.000")
    page.go_forward()
    expect(page.locator("#terms li")).to_have_count(2)


def test_next_goes_beyond_the_first_page(page: Page, index: Index, clip: LoadedBundle) -> None:
    page.set_viewport_size({"width": 1600, "height": 500})  # The end of the page is far from being seen.
    page.fill("#text", "a circle")
    expect(page.locator("#grid .tile")).to_have_count(40)
    (expected,) = index.search(clip.encode_texts(["a circle"]), top=48)
    names = [Path(one.entry.key).name for one in expected]
    page.locator("#grid .open").first.click()
    position, name = page.locator("#detail-position"), page.locator("#detail-name")
    expect(position).to_have_text("1 of 40 so far")
    keep(page, "detail-position")
    for number in range(1, 48):
        page.keyboard.press("ArrowRight")
        expect(name).to_have_text(names[number])
    expect(position).to_have_text("48 of 48")
    expect(page.get_by_role("button", name="Next →")).to_be_disabled()
    check_accessible(page)
    page.keyboard.press("Escape")
    expect(page.locator("#detail")).to_be_hidden()
    expect(page.locator("#grid .open").nth(47)).to_be_focused()  # When the event `close` of the dialog has arrived.


def test_back_closes_the_large_view(page: Page, index: Index) -> None:
    page.fill("#text", "a circle")
    expect(page.locator("#grid .tile")).to_have_count(40)
    page.locator("#more").scroll_into_view_if_needed()
    expect(page.locator("#grid .tile")).to_have_count(48)
    page.locator("#grid .open").nth(45).click()
    expect(page.locator("#detail")).to_be_visible()
    opened_id = asked(page)["picture"][0]
    scroll = page.evaluate("scrollY")
    page.go_back()
    expect(page.locator("#detail")).to_be_hidden()
    assert "picture" not in asked(page)
    page.go_forward()
    expect(page.locator("#detail")).to_be_visible()
    page.evaluate("document.querySelector('#detail').dispatchEvent(new Event('close'))")  # Late, for the view before.
    page.get_by_role("button", name="+ More like this").click()  # A new search; Back leads to the picture.
    expect(page.locator("#terms li")).to_have_count(1)
    expect(page.locator("#detail")).to_be_hidden()
    page.go_back()
    expect(page.locator("#detail")).to_be_visible()
    assert asked(page)["picture"] == [opened_id]
    expect(page.locator("#grid .tile")).to_have_count(48)
    expect(page.locator("#terms li")).to_have_count(0)
    page.keyboard.press("Escape")
    expect(page.locator("#detail")).to_be_hidden()
    page.wait_for_function("scroll => Math.abs(scrollY - scroll) < 2", arg=scroll)
    page.wait_for_function("() => !location.search.includes('picture')")  # Escape goes back, which takes a moment.


def test_an_address_opens_a_picture(browser: Browser, site: Site, index: Index, clip: LoadedBundle) -> None:
    (hits,) = index.search(clip.encode_texts(["a circle"]), top=3)
    said: list[str] = []
    with browser.new_context() as context:
        page = opened(context, said, f"{site.url}/?q=a+circle&picture={hits[2].entry.digest}")
        expect(page.locator("#detail-name")).to_have_text(Path(hits[2].entry.key).name)
        page.get_by_label("Close").click()
        expect(page.locator("#detail")).to_be_hidden()
        page.wait_for_url(f"{site.url}/?q=a+circle")
    assert said == []


def test_the_filter_says_that_enter_applies_it(page: Page) -> None:
    page.fill("#text", "a circle")
    expect(page.locator("#grid .tile")).to_have_count(40)
    page.click("#filters summary")
    page.fill("#where", "width > 80")
    state = page.locator("#where-state")
    expect(state).to_have_text("Not applied yet: press Enter or choose Apply.")
    check_accessible(page)
    keep(page, "filter")
    page.fill("#text", "a red circle")  # Another text does not apply it, and does not remove it.
    expect(page.locator("#grid")).to_have_attribute("aria-busy", "false")
    page.wait_for_url("**/?q=a+red+circle")
    assert page.locator("#where").input_value() == "width > 80"
    page.get_by_role("button", name="Apply").click()
    expect(state).to_have_text("")
    expect(page.locator("#grid .tile")).to_have_count(15)
    page.fill("#where", "")
    page.keyboard.press("Enter")
    expect(state).to_have_text("")
    expect(page.locator("#grid .tile")).to_have_count(40)


def test_the_skip_link_keeps_the_tab(page: Page) -> None:
    page.click("#tab-classes")
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    expect(page.locator("#classes")).to_be_visible()
    assert page.url.endswith("#classes")
