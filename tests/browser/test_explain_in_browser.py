"""The page of the docs site that explains logs, in Chromium, from a plain file server: Python runs in the page."""

from __future__ import annotations

import functools
import http.server
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fivefold.explain import explain

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]
LOG = ROOT / "tests/data/faults/thread-2017-kasan-efi.log"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(npm: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("site")
    subprocess.run([ROOT / ".ci/browser-page", str(folder)], check=True, cwd=ROOT)
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/index.html"
        server.shutdown()


@pytest.fixture(scope="module")
def page(address: str, tab: Any) -> Any:
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(address)
    tab.wait_for_selector("body[data-ready]", timeout=120_000)
    assert all(url.startswith((address.rpartition("/")[0], "data:", "blob:")) for url in asked)
    return tab


def test_a_log_is_explained_as_the_command_does(page: Any) -> None:
    page.fill("#log", LOG.read_text())
    page.click("#explain")
    told = " ".join(page.inner_text("#report").split())
    ours = explain(LOG)
    # No instruction is decoded there; here nothing rests on one.
    assert told.startswith(ours.headline)
    assert f"cause {ours.cause.rule}, {ours.cause.confidence}" in told and "mode five levels" in told


def test_an_address_is_walked_in_both_modes(page: Any) -> None:
    page.fill("#address", "0xff11000000000000")
    page.click("#walk")
    told = page.inner_text("#walks")
    assert "not canonical" in told and "PML5 entry 273" in told and "direct_map" in told


def test_nothing_is_cut_and_no_rule_of_accessibility_is_broken(page: Any, serious_faults: Any) -> None:
    page.fill("#address", "0x" + "f" * 300)  # the refusal quotes it
    page.click("#walk")
    for width in (420, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not serious_faults(page)
