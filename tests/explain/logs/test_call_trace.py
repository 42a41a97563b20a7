"""Call traces as kernels of all ages print them, and their names by a list of symbols."""

from __future__ import annotations

from pathlib import Path

import pytest

import fivefold as ff
from fivefold.explain.logs.linux.call_trace import MOST, callers_of
from fivefold.explain.logs.trace import Caller

AT = 0xFFFFFFFF81123456
STAMPS = (
    "",
    "[    1.234567] ",
    "<4>[    1.234567][    T1] ",
    "Nov 29 10:00:00 host kernel: [    1.234567] ",
    "[    1.2] [ T12] ",
)
LINES = {
    " [<ffffffff81123456>]": Caller(AT),
    " 0xffffffff81123456": Caller(AT),
    " [<ffffffff81123456>] ? 0xffffffff81123456": Caller(AT, None, True),
    " ? __schedule+0x1/0x20": Caller(None, "__schedule+0x1/0x20", True),
    " [<ffffffff81123456>] do_init+0x44/0x1d0 [some_module]": Caller(AT, "do_init+0x44/0x1d0 [some_module]"),
    " [<0>] do_init+0x44/0x1d0": Caller(None, "do_init+0x44/0x1d0"),
}


@pytest.mark.parametrize("stamp", STAMPS)
def test_lines_of_all_ages(stamp: str) -> None:
    text = [
        "RIP: 0010:0xffffffff81000000",
        "Call Trace:",
        " <TASK>",
        *LINES,
        " </TASK>",
        "Modules linked in: dummy",
        " 0xffffffff81999999",
    ]
    assert callers_of(stamp + line for line in text) == tuple(LINES.values())


def test_what_is_no_trace_ends_it() -> None:
    assert callers_of(["no trace", " 0xffffffff81123456"]) == ()
    assert callers_of(["Call Trace:", "Code: 00 00", " 0xffffffff81123456"]) == ()
    assert len(callers_of(["Call Trace:", *[" 0xffffffff81123456"] * 5000])) == MOST


@pytest.mark.parametrize(
    ("offset", "named"), [("disabled", True), ("0x1000000 from 0xffffffff81000000", True), ("", False)]
)
def test_frames_have_the_names_of_the_symbols(tmp_path: Path, offset: str, named: bool) -> None:
    slide = 0x1000000 if offset.startswith("0x") else 0
    symbols = {"_text": 0xFFFFFFFF81000000, "first": 0xFFFFFFFF81123000, "second": 0xFFFFFFFF81124000}
    symbols["_etext"] = 0xFFFFFFFF81125000
    (tmp_path / "System.map").write_text("".join(f"{at:x} T {name}\n" for name, at in symbols.items()))
    report = (
        "BUG: unable to handle page fault for address: ffffc90000400000\n"
        "#PF: error_code(0x0002) - not-present page\n"
        f"Oops: 0002 [#1] SMP\nRIP: 0010:{symbols['first'] + slide + 8:#x}\n"
        "RSP: 0018:ffffc90000013e00 EFLAGS: 00010246\n"
        "CR2: ffffc90000400000 CR3: 000000000220a000 CR4: 00000000000006f0\nCall Trace:\n"
        f" {symbols['second'] + slide + 4:#x}\n ? known+0x1/0x2\n 0xffffffffc0001000\n"
        "Kernel panic - not syncing: Fatal exception\n"
    )
    (tmp_path / "log").write_text(report + (f"Kernel Offset: {offset}\n" if offset else ""))
    found = ff.explain(tmp_path / "log", symbols=tmp_path / "System.map")
    told = [remark for remark in found.remarks if remark.startswith("call trace")]
    assert told == (["call trace: second+0x4, known+0x1/0x2 (doubtful), 0xffffffffc0001000"] if named else [])
    second = "second+0x4" if named else f"{symbols['second'] + 4:#018x}"
    assert found["frames"] == [second, "known+0x1/0x2 (doubtful)", "0xffffffffc0001000"]
    assert found["exceptions"][0]["symbol"] == ("first+0x8" if named else None)
    assert (found["symbols_known_from"] is not None) == named
