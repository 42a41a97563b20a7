"""Words of the command line: whole ones, values, numbers, and what is for the next kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fivefold.arch import LA48

Guards = Callable[..., None]
KERNEL = "fivefold.kernel"
WORDS = [
    ("kexec", "kexec", 1),
    ("kexec_down kexec", "kexec", 1),
    ("kexec kexec_down", "kexec", 1),
    ("kexec_down", "kexec", 0),
    ("xkexec", "kexec", 0),
    ("kexeckexec", "kexec", 0),
    ("kexec_down -- kexec", "kexec", 0),
    ("  kaslr\tkasan ", "kasan", 1),
    ("kaslr=7", "kaslr", 0),
    ("kaslr=7 kaslr", "kaslr", 1),
    ("--kasan kasan", "kasan", 1),
    ("", "kasan", 0),
]


def prepared(code: Any, package: str, text: str) -> tuple[Any, int]:
    names = ("has_word", "is_number_at", "number_at", "after_end_mark", "contradicts")
    helpers = code(LA48, *(f"params.{name}" for name in names), package=package, extents=[(0x1000, 0x4000)])
    helpers.ram.write(0x1000, text.encode().ljust(0x2000, b"\0"))
    return helpers, helpers.window + 0x1000


@pytest.mark.parametrize(("text", "word", "want"), WORDS)
def test_words(code: Any, text: str, word: str, want: int) -> None:
    helpers, at = prepared(code, KERNEL, text)
    assert helpers.call("params.has_word", at, word) == want


def test_a_word_is_found_behind_one_that_begins_with_it(code: Any, guards: Guards) -> None:
    """`kexec_down kexec` did not start the next kernel."""

    def check(package: str) -> None:
        helpers, at = prepared(code, package, "kexec_down kexec")
        assert helpers.call("params.has_word", at, "kexec") == 1

    guards(check, "params.py", ("        rest = find_option(VirtAddr(rest), name)\n", "        return False\n"))


NUMBERS = [
    ("0", 0),
    ("18446744073709551615", (1 << 64) - 1),
    ("18446744073709551616", None),
    ("0xffffffffffffffff", (1 << 64) - 1),
    ("0x10000000000000000", None),
    ("0X1F ", 31),
    ("12a", None),
    ("", None),
    ("0x", None),
    ("-1", None),
    ("seven", None),
]


@pytest.mark.parametrize(("text", "want"), NUMBERS)
def test_numbers(code: Any, text: str, want: int | None) -> None:
    helpers, at = prepared(code, KERNEL, text)
    assert helpers.call("params.is_number_at", at) == (want is not None)
    if want is not None:
        assert helpers.call("params.number_at", at) == want


def test_what_follows_the_end_mark_is_for_the_next_kernel(code: Any) -> None:
    helpers, at = prepared(code, KERNEL, "kexec -- kaslr=7")
    rest = helpers.call("params.after_end_mark", at)
    assert helpers.plain.read(rest, 9).rstrip(b"\0") == b" kaslr=7"
    assert prepared(code, KERNEL, "kexec --kaslr")[0].call("params.after_end_mark", at) == 0


TWICE = [
    ("pages=4k pages=2m", 1),
    ("pages=4k a pages=4k b pages=2m", 1),
    ("pages=2 pages=2m", 1),
    ("pages=2m pages=2", 1),
    ("pages= pages=2m", 1),
    ("pages=4k pages=4k", 0),
    ("pages=4k\txpages=2m", 0),
    ("pages=4k -- pages=2m", 0),
    ("pages=4k", 0),
    ("", 0),
]


@pytest.mark.parametrize(("text", "want"), TWICE)
def test_an_option_with_two_values(code: Any, text: str, want: int) -> None:
    helpers, at = prepared(code, KERNEL, text)
    assert helpers.call("params.contradicts", at, "pages=") == want
