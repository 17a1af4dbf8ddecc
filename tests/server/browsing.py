"""A page in a browser, and what tests read from it. Screenshots are kept where SCREENSHOTS says."""

import os
from importlib.util import find_spec
from pathlib import Path

from playwright.sync_api import BrowserContext, ConsoleMessage, Page

_SERIOUS = {"serious", "critical"}


def opened(context: BrowserContext, said: list[str], address: str) -> Page:
    """A page there, whose complaints are collected."""
    page = context.new_page()
    page.set_default_timeout(20_000)

    def note(message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and "422" not in message.text:  # What one typed was refused.
            said.append(message.text)

    page.on("console", note)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(address)
    return page


def keep(page: Page, name: str) -> None:
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png")


def ids(page: Page) -> list[str]:
    found: list[str] = page.eval_on_selector_all("#grid img", "all => all.map((one) => one.src.split('/')[5])")
    return found


def check_accessible(page: Page) -> None:
    """No serious finding of axe-core."""
    spec = find_spec("axe_playwright_python")
    assert spec is not None
    assert spec.origin is not None
    page.evaluate(Path(spec.origin).with_name("axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("async () => (await axe.run()).violations")
    assert [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in _SERIOUS] == []
