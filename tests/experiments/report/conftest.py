"""The page of a results folder in a real Chromium, and what can be read off it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests import made_results as made

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
RESULTS = Path(__file__).parents[3] / "results"
EVIL = "<script>window.hacked=1</script><img src=x onerror='window.hacked=2'>"

DATA = "document.getElementById('plot').data"
LAYOUT = "document.getElementById('plot').layout"
SHOWN = f"{DATA}.filter((one) => one.error_y && one.yaxis !== 'y2')"
"""The series with measured points."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if os.environ.get("MIRAGE_NO_BROWSER") == "1":
        pytest.skip("MIRAGE_NO_BROWSER=1: the page is not looked at in a browser")
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        pytest.fail(
            "no Chromium here to test the report with; Debian: apt-get install chromium (or set MIRAGE_NO_BROWSER=1)",
            pytrace=False,
        )
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


def open_page(
    browser: Browser, path: Path, problems: list[str], *, width: int = 1280, drawn: bool = True, **options: Any
) -> Page:
    """A page from disk; what it complains about, and what it asks of a network, is added to `problems`."""
    page = browser.new_context(viewport={"width": width, "height": 900}, **options).new_page()
    page.set_default_timeout(20_000)
    page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: problems.extend(asked(request.url)))
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-drawn]" if drawn else "html[data-ready]", state="attached")
    return page


def asked(address: str) -> list[str]:
    return [] if address.startswith(("file:", "data:", "blob:")) else [f"asked for {address}"]


@pytest.fixture
def opened(browser) -> Iterator[Callable[..., Page]]:
    """Opens pages of its own; in the end nothing may have been asked of a network, and nothing complained about."""
    problems: list[str] = []
    pages = []

    def open_(path: Path, **options: Any) -> Page:
        pages.append(open_page(browser, path, problems, **options))
        return pages[-1]

    open_.problems = problems
    yield open_
    for page in pages:
        page.context.close()
    assert problems == []


@pytest.fixture(scope="module")
def sweep_page(browser, sweep_path) -> Iterator[Page]:
    """The sweep's page, for tests that look at a part of it that no other one changes."""
    problems: list[str] = []
    page = open_page(browser, sweep_path, problems)
    yield page
    page.context.close()
    assert problems == []


@pytest.fixture(scope="module")
def sweep_path(tmp_path_factory) -> Path:
    """Two variants over four ε each."""
    cells = [
        made.cell(4 * which + number, epsilon, variant)
        for which, variant in enumerate(("clip", "secagg"))
        for number, epsilon in enumerate(made.EPSILONS)
    ]
    return made.written(made.sweep(cells), tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def study_path(tmp_path_factory) -> Path:
    return made.written(made.study(made.study_records()), tmp_path_factory.mktemp("study"))


def names(page: Page) -> list[str]:
    """The series in the plot."""
    found: list[str] = page.evaluate(f"{SHOWN}.map((one) => one.name)")
    return found


def heights(page: Page) -> list[float]:
    """All values in the plot."""
    found: list[float] = page.evaluate(f"{SHOWN}.flatMap((one) => one.y)")
    return found


def hover(page: Page) -> str:
    """What is said of the plot's first point when the mouse is over it."""
    page.locator("#plot").scroll_into_view_if_needed()
    box = page.locator("#plot .scatterlayer .points path").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 + 40, box["y"] + box["height"] / 2 - 40)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
    told: str = page.locator(".hoverlayer .hovertext").first.text_content()
    return told


def cells_of(page: Page, head: str) -> list[str]:
    """What stands in a column of the table's page."""
    heads = page.locator("#rows thead th").all_inner_texts()
    found = page.locator(f"#rows tbody td:nth-child({heads.index(head) + 1})").all_inner_texts()
    return [text.strip() for text in found]
