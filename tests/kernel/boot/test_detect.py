"""Detection: the maximum leaf first, then leaf 7 subleaf 0, then the command line."""

from __future__ import annotations

from typing import Any

import pytest

from fivefold.kernel.boot import detect

HAS, LACKS, NO5LVL, OLD = (
    detect.REASON_CPU_HAS_LA57,
    detect.REASON_CPU_LACKS_LA57,
    detect.REASON_NO5LVL,
    detect.REASON_MAX_LEAF_BELOW_7,
)
LA57 = 1 << 16
ALL = 0xFFFF_FFFF


def machine(code: Any, processor: Any, max_leaf: int = 0x20, **leaves: tuple[int, int, int, int]) -> Any:
    """The detection on a CPU with these leaves: ``leaf7`` is (7, 0), ``leaf7_1`` is (7, 1)."""
    found = {"leaf7": (7, 0), "leaf7_1": (7, 1), "leaf1": (1, 0)}
    return code(None, "detect", processor=processor({found[k]: v for k, v in leaves.items()}, max_leaf))


CPUS = [
    ("with LA57", 0x20, {"leaf7": (0, 0, LA57, 0)}, HAS),
    ("leaf 7 is the last", 7, {"leaf7": (0, 0, LA57, 0)}, HAS),
    ("leaf 7 without LA57", 0x20, {"leaf7": (0, 0, ALL & ~LA57, 0)}, LACKS),
    ("the bit in other registers", 0x20, {"leaf7": (LA57, LA57, 0, LA57)}, LACKS),
    ("the bit in subleaf 1 only", 0x20, {"leaf7": (1, 0, 0, 0), "leaf7_1": (0, 0, LA57, 0)}, LACKS),
    ("maximum leaf 6, leaf 7 aliased", 6, {"leaf7": (ALL, ALL, ALL, ALL)}, OLD),
    ("maximum leaf 1, leaf 7 aliased", 1, {"leaf7": (ALL, ALL, ALL, ALL)}, OLD),
    ("no leaf at all", 0, {}, OLD),
]


@pytest.mark.parametrize(("cpu", "max_leaf", "leaves", "reason"), CPUS, ids=[cpu[0] for cpu in CPUS])
def test_cpus(code: Any, processor: Any, cpu: str, max_leaf: int, leaves: dict[str, Any], reason: int) -> None:
    helpers = machine(code, processor, max_leaf, **leaves)
    assert helpers.call("detect.reason_for_mode", 0) == reason
    assert helpers.call("detect.wants_five_levels", reason) == (reason == HAS)


def test_leaf_7_is_not_asked_where_the_cpu_does_not_have_it(code: Any, processor: Any) -> None:
    helpers = machine(code, processor, 6)
    helpers.call("detect.reason_for_mode", 0)
    assert {leaf for leaf, _ in helpers.processor.asked} == {0}


CMDLINES = [
    ("", HAS),
    ("no5lvl", NO5LVL),
    ("quiet no5lvl", NO5LVL),
    ("no5lvl quiet", NO5LVL),
    ("\tno5lvl\n", NO5LVL),
    ("no5lv", HAS),
    ("no5lvls", HAS),
    ("xno5lvl", HAS),
    ("no5lvl=1", HAS),
    ("NO5LVL", HAS),
    ("no5no5lvl", HAS),
    ("no5lvl" * 2, HAS),
    ("a" * 4089 + " no5lvl", HAS),  # its end lies beyond what is looked at
    ("a" * 4088 + " no5lvl", NO5LVL),
]


@pytest.mark.parametrize(("text", "reason"), CMDLINES, ids=[repr(text[-12:]) for text, _ in CMDLINES])
def test_no5lvl_is_a_whole_word(code: Any, processor: Any, text: str, reason: int) -> None:
    helpers = machine(code, processor, leaf7=(0, 0, LA57, 0))
    cmdline = helpers.plain.map(text.encode() + b"\0")
    assert helpers.call("detect.reason_for_mode", cmdline) == reason


def test_command_line_without_end_is_read_to_the_limit_only(code: Any, processor: Any) -> None:
    helpers = machine(code, processor, leaf7=(0, 0, LA57, 0))
    cmdline = helpers.plain.map(b"a" * detect.MAX_CMDLINE)
    assert helpers.call("detect.reason_for_mode", cmdline) == HAS


@pytest.mark.parametrize(
    ("extended", "eax", "bits"),
    [(0, 40, 36), (0x8000_0007, 40, 36), (0x8000_0008, 40, 40), (0x8000_0008, 0x3934, 52), (0x8000_0008, 0xFF, 52)],
)
def test_physical_width(code: Any, processor: Any, extended: int, eax: int, bits: int) -> None:
    leaves = {(0x8000_0000, 0): (extended, 0, 0, 0), (0x8000_0008, 0): (eax, 0, 0, 0)}
    helpers = code(None, "detect", processor=processor(leaves))
    assert helpers.call("detect.cpu_phys_bits") == bits


@pytest.mark.parametrize(("name", "bit"), [("cpu_has_gib_pages", 26), ("cpu_has_nx", 20)])
def test_extended_features(code: Any, processor: Any, name: str, bit: int) -> None:
    for extended, edx, has in (
        (0x8000_0001, 1 << bit, 1),
        (0x8000_0001, ALL & ~(1 << bit), 0),
        (0x8000_0000, ALL, 0),  # the leaf is not there; what it answers is another's
    ):
        leaves = {(0x8000_0000, 0): (extended, 0, 0, 0), (0x8000_0001, 0): (0, 0, 0, edx)}
        assert code(None, "detect", processor=processor(leaves)).call(f"detect.{name}") == has


@pytest.mark.parametrize(
    ("text", "name", "value", "found"),
    [
        ("layout=proposal", "layout=", "proposal", 1),
        ("a layout=proposal b", "layout=", "proposal", 1),
        ("layout=proposals", "layout=", "proposal", 0),
        ("layout=linux", "layout=", "proposal", 0),
        ("xlayout=proposal", "layout=", "proposal", 0),
        ("layout=", "layout=", "proposal", 0),
        ("", "layout=", "proposal", 0),
        ("pages=4k", "pages=", "4k", 1),
    ],
)
def test_options_with_a_value(code: Any, text: str, name: str, value: str, found: int) -> None:
    helpers = code(None, "params")
    assert helpers.call("params.has_value", helpers.plain.map(text.encode() + b"\0"), name, value) == found


def test_no_command_line_has_no_option(code: Any) -> None:
    helpers = code(None, "params")
    assert helpers.call("params.has_value", 0, "layout=", "proposal") == 0
    assert helpers.call("params.has_word", 0, "no5lvl") == 0


@pytest.mark.parametrize(("text", "found"), [("a b", 1), ("ab", 0), ("b", 1), ("b=1", 0), ("", 0)])
def test_words(code: Any, text: str, found: int) -> None:
    helpers = code(None, "params")
    assert helpers.call("params.has_word", helpers.plain.map(text.encode() + b"\0"), "b") == found
