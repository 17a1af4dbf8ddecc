"""Near-equal pictures are folded over HTTP, in the client and on the page."""

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

import diptych
from diptych.index.protocol import Index
from diptych.inference.loaded import LoadedBundle
from diptych.search.similar import SIMILAR_COSINE, HitGroup, search_groups
from tests.server.browsing import check_accessible, ids, keep
from tests.server.site import Site

FEW = 0.9999
"""A cosine with which the tiny model's pictures make some groups."""


def expected(index: Index, clip: LoadedBundle, text: str, threshold: float = SIMILAR_COSINE) -> list[HitGroup]:
    groups = search_groups(index, clip.encode_texts([text])[0], top=48, threshold=threshold)
    assert 1 <= len(groups) < 48
    return groups


def folded(groups: list[HitGroup]) -> list[tuple[str, list[str]]]:
    return [(one.hit.entry.digest, [hit.entry.digest for hit in one.similar]) for one in groups]


@pytest.mark.parametrize("value", [True, 0.95, FEW])
def test_a_request_with_groups(site: Site, index: Index, clip: LoadedBundle, value: bool | float) -> None:
    groups = expected(index, clip, "a circle", 0.95 if value is True else value)
    found: list[dict[str, Any]] = []
    while True:  # Pages join to the whole.
        body = {"text": "a circle", "group_similar": value, "offset": len(found), "limit": 7}
        answer = site.post("/v1/search", body)
        found += answer["results"]
        if not answer["has_more"]:
            break
    assert [(one["id"], [hit["id"] for hit in one["similar"]]) for one in found] == folded(groups)
    assert sum(1 + len(one["similar"]) for one in found) == 48


def test_without_the_field_nothing_is_folded(site: Site) -> None:
    for more in ({}, {"group_similar": False}, {"group_similar": None}):
        found = site.post("/v1/search", {"text": "a circle", "limit": 48} | more)["results"]
        assert len(found) == 48
        assert all(one["similar"] == [] for one in found)


@pytest.mark.parametrize("value", [0, -0.5, 1.5, "yes", [0.9]])
def test_values_that_are_refused(site: Site, value: Any) -> None:
    answer = site.ask("POST", "/v1/search", {"text": "a", "group_similar": value})
    assert answer.status == 422
    assert "group_similar" in answer.json["detail"]


def test_the_client(site: Site, index: Index, clip: LoadedBundle) -> None:
    groups = expected(index, clip, "a circle", FEW)
    far = diptych.Client(site.url)
    found = far.search("a circle", limit=48, group_similar=FEW)
    assert [(hit.id, [one.id for one in hit.similar]) for hit in found] == folded(groups)
    assert found[0].path == Path(groups[0].hit.entry.key).name
    assert len(far.search("a circle", limit=48)) == 48


def test_groups_on_the_page(page: Page, index: Index, clip: LoadedBundle) -> None:
    groups = expected(index, clip, "a circle")
    leaders = [one.hit.entry.digest for one in groups]
    at = next(number for number, one in enumerate(groups) if one.similar)
    members = [hit.entry.digest for hit in groups[at].similar]
    page.fill("#text", "a circle")
    expect(page.locator("#grid .tile")).to_have_count(40)
    switch = page.get_by_role("switch", name="Group near-equal pictures")
    switch.focus()
    page.keyboard.press("Space")
    expect(page.locator("#grid .tile")).to_have_count(len(groups))
    assert ids(page) == leaders
    assert page.url.endswith("?q=a+circle&group=1")
    expect(page.locator("#status")).to_contain_text(f"{48 - len(groups)} near-equal ones folded")
    check_accessible(page)

    more = page.locator("#grid .tile").nth(at).get_by_role("button", name="similar to")
    expect(more).to_have_text(f"+{len(members)} similar")
    more.press("Enter")
    expect(more).to_have_attribute("aria-expanded", "true")
    unfolded = [*leaders[: at + 1], *members, *leaders[at + 1 :]]
    assert ids(page) == unfolded
    check_accessible(page)
    keep(page, "groups")
    more.press("Enter")
    assert ids(page) == leaders

    page.locator("#grid .open").nth(at).click()
    page.get_by_role("button", name=f"Show {len(members)} similar picture").click()
    expect(page.locator("#detail-position")).to_have_text(f"{at + 2} of {len(leaders) + len(members)}")
    expect(page.locator("#detail-name")).to_have_text(Path(groups[at].similar[0].entry.key).name)
    page.reload()  # The address has the switch and the picture, which is unfolded for it.
    expect(page.locator("#detail-name")).to_have_text(Path(groups[at].similar[0].entry.key).name)
    expect(page.get_by_role("switch")).to_be_checked()
    page.keyboard.press("Escape")
    page.wait_for_url("**/?q=a+circle&group=1")
    expect(page.locator("#detail")).to_be_hidden()
    page.go_back()
    expect(page.locator("#grid .tile")).to_have_count(40)
    expect(page.get_by_role("switch")).not_to_be_checked()


def test_hits_have_names_and_paths(page: Page, index: Index, clip: LoadedBundle) -> None:
    (hits,) = index.search(clip.encode_texts(["a circle"]), top=40)
    page.fill("#text", "a circle")
    expect(page.locator("#grid .tile .file")).to_have_text([Path(hit.entry.key).name for hit in hits])
    page.locator("#grid .open").first.click()
    expect(page.locator("#detail-words dl")).to_contain_text(f"Path{Path(hits[0].entry.key).name}")
