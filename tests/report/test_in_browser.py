"""What the page in a browser asks runs without anything native, and answers what the instruments answer."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fivefold.arch import LA48, LA57
from fivefold.report import in_browser
from fivefold.report.page.browser_page import EXAMPLES, browser_page, write_sources

_WITHOUT = """
import sys
for name in ("numpy", "capstone", "rich", "unicorn", "llvmlite", "typer", "jinja2"):
    sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
from fivefold.report import in_browser
print(in_browser.__file__)
for text in sys.stdin.read().split("\\0"):
    told = in_browser.explain_log(text)
    print(told["explanation"]["cause"]["rule"], told["explanation"]["cause"]["confidence"])
    print(*told["explanation"]["unknown"], sep="|")
print(len(in_browser.walk_address("0xff11000000000000")["modes"][1]["steps"]))
"""
_CODE = "Code: " + "90 " * 42 + "<48> 89 38 c3 " + " ".join(["90"] * 18)


def test_it_runs_from_its_archive_with_nothing_native(tmp_path: Path) -> None:
    write_sources(tmp_path / "fivefold.zip")
    first_log = next(iter(EXAMPLES.values()))
    logs = [*EXAMPLES.values(), first_log.replace("RSP:", f"{_CODE}\nRSP:")]
    run = [sys.executable, "-S", "-I", "-c", _WITHOUT, str(tmp_path / "fivefold.zip")]
    done = subprocess.run(run, input="\0".join(logs), capture_output=True, text=True, check=True)
    place, first, _, second, _, with_code, unknown, steps = done.stdout.splitlines()
    assert "fivefold.zip" in place and steps == "5"
    assert first.startswith("not-present") and second.startswith("not-present")
    # Code that cannot be read here is said, and nothing rests on it.
    assert with_code == first and "was not decoded" in unknown


def test_the_archive_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("one.zip", "two.zip"):
        write_sources(tmp_path / name)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    names = zipfile.ZipFile(tmp_path / "one.zip").namelist()
    assert "fivefold/report/in_browser.py" in names and not any(name.startswith("fivefold/kernel/") for name in names)


def test_examples_are_explained_as_they_are_called() -> None:
    five, null = (in_browser.explain_log(text)["explanation"] for text in EXAMPLES.values())
    assert (five["mode"], five["cause"]["level"], five["cause"]["confidence"]) == ("la57", "PML4", "certain")
    assert null["mode"] is None and "null" in null["headline"].lower()


@pytest.mark.parametrize("text", ["", "nothing of a CPU", "\0\0", "é" * 100])
def test_what_is_no_log_is_said_in_a_line(text: str) -> None:
    assert "\n" not in in_browser.explain_log(text)["error"]


@pytest.mark.parametrize(
    "text", ["0", "0x7fffffffffff", "0x800000000000", "0xffffffff81000123", "ff11000000000000", "0xffffffffffffffff"]
)
def test_a_walk_takes_the_entries_that_the_address_names(text: str) -> None:
    told = in_browser.walk_address(text)
    va = int(told["address"], 16)
    for mode, walked in zip((LA48, LA57), told["modes"], strict=True):
        assert walked["canonical"] == mode.is_canonical(va)
        indices = [int(step["at"], 16) % 4096 // 8 for step in walked["steps"]]
        shifts = range(3 + 9 * walked["levels"], 11, -9)
        assert indices == ([va >> shift & 511 for shift in shifts] if walked["canonical"] else [])
        assert all(int(step["entry"], 16) & 1 for step in walked["steps"])


def test_what_is_no_address_is_said_in_a_line() -> None:
    assert "zz" in in_browser.walk_address("zz")["error"]
    assert "64 bits" in in_browser.walk_address("0x10000000000000000")["error"]


def test_the_page_loads_nothing_from_elsewhere() -> None:
    page = browser_page()
    assert "http://" not in page and "https://" not in page.replace("https://www.w3.org", "")
