"""A real browser for the pages: Debian's Chromium through Playwright, whose own browsers are not needed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    try:
        from playwright import sync_api
    except ImportError:
        _lacking("playwright is not installed: pip install '.[browser]'")
    with sync_api.sync_playwright() as started:
        found = started.chromium.launch(executable_path=_chromium(), args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


def _chromium() -> str:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        _lacking("no Chromium found: apt install chromium")
    return found


@pytest.fixture(scope="session")
def serious_faults() -> Callable[[Any], list[tuple[str, str]]]:
    """What a checker of accessibility has against a page and calls serious: rule and place."""
    try:
        from axe_playwright_python.sync_playwright import Axe
    except ImportError:
        _lacking("axe-playwright-python is not installed: pip install '.[browser]'")

    def check(page: Any) -> list[tuple[str, str]]:
        found = Axe().run(page).response["violations"]
        return [(one["id"], one["nodes"][0]["html"][:200]) for one in found if one["impact"] in ("serious", "critical")]

    return check


@pytest.fixture(scope="session")
def npm() -> None:
    """Fetches Pyodide."""
    if shutil.which("npm") is None:
        _lacking("npm is not installed: it fetches Pyodide")


def _lacking(what: str) -> NoReturn:
    """Skip by name, or fail where a browser is required."""
    if os.environ.get("FIVEFOLD_REQUIRE_BROWSER"):
        pytest.fail(f"a browser is required here: {what}", pytrace=False)
    pytest.skip(what)


@pytest.fixture(scope="module")
def tab(browser: Any) -> Iterator[Any]:
    """A page of 1280 columns for a module; what its scripts complain of fails the last test."""
    complaints: list[str] = []
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    yield page
    page.close()
    assert not complaints
