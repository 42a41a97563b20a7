"""Numbers of an oops that are printed, and are not what they seem: left out, and the reason told."""

from __future__ import annotations

import html
import io

import pytest

from fivefold.explain import Explanation, explain
from fivefold.explain.logs.foreign.debugger import read_debugger
from fivefold.explain.logs.linux import frames
from fivefold.explain.logs.text.lines import Line

OOPS = """\
BUG: unable to handle page fault for address: ffff88810a2b3000
#PF: supervisor write access in kernel mode
#PF: error_code(0x0002) - not-present page
PGD {entries}
Oops: 0002 [#1] PREEMPT SMP
CPU: 0 PID: 99 Comm: demo Not tainted 6.1.0 #1
RIP: 0010:demo_write+0x1a/0x40
RSP: 0018:ffffc90000a3bd58 EFLAGS: 00010286
CR2: ffff88810a2b3000
"""
LATER = """\
Oops: 0000 [#1] PREEMPT SMP
CPU: 0 PID: 99 Comm: demo Not tainted 4.14.0 #1
RIP: 0010:0x{rip:016x}
Code: {code}
RSP: 0018:ffffc90000a3bd58 EFLAGS: 00010286
CR2: {cr2:016x}
"""
RIP = 0xFFFF_FFFF_A000_1000


def told(text: str) -> Explanation:
    return explain(io.BytesIO(text.encode()))


def test_an_entry_behind_one_that_is_not_present() -> None:
    """No walk goes on there, so that one of the two is not what the kernel printed, and none of them counts."""
    found = told(OOPS.format(entries="0 P4D 1d0067 PUD 1f0067 PMD 0"))
    assert found.cause.level is None
    assert "the PGD entry 0x0 is not present, and yet one follows it" in "; ".join(found.unknown)
    assert told(OOPS.format(entries="100067 P4D 1d0067 PUD 1f0067 PMD 0")).cause.level == 2


@pytest.mark.parametrize("last", ["1", "2", "1f", "fff"])
def test_an_entry_that_names_no_table(last: str) -> None:
    found = told(OOPS.format(entries=f"100067 P4D {last}"))
    assert found.cause.level is None
    assert f"the P4D entry 0x{last} is neither empty nor present: perhaps the line was cut" in "; ".join(found.unknown)


@pytest.mark.parametrize(
    ("code", "start"),
    [
        ("Bad RIP value.", RIP - 42),
        ("Unable to access opcode bytes at RIP 0xffffffffa0002000.", RIP + 0x1000),
    ],
)
def test_cr2_of_the_kernel_that_read_the_code(code: str, start: int) -> None:
    """It prints 64 bytes from 42 in front of RIP on, and where that faults CR2 is the reading's, not the oops'."""
    for cr2, is_kept in ((start - 1, True), (start, False), (start + 63, False), (start + 64, True)):
        found = told(LATER.format(rip=RIP, code=code, cr2=cr2))
        assert found.exceptions[0].address == (cr2 if is_kept else None)
        assert found.cause.address == (cr2 if is_kept else None)


@pytest.mark.parametrize(
    ("release", "is_last"), [("4.17.19", True), ("4.18.0", False), ("4.9.1", True), ("5.0.0", False)]
)
def test_which_kernels_print_code_after_the_trace(release: str, is_last: bool) -> None:
    assert frames._prints_code_last(f"CPU: 0 PID: 1 Comm: demo Not tainted {release} #1") is is_last


@pytest.mark.parametrize(("release", "area"), [("3.13.0", "modules"), ("3.14.0", None)])
def test_since_when_the_image_may_slide(release: str, area: str | None) -> None:
    """Source: Linux 3.14, "CONFIG_RANDOMIZE_BASE": before it what lies above the image's default end is a module."""
    text = LATER.format(rip=0xFFFF_FFFF_8100_1000, code="<8b> 00", cr2=0xFFFF_FFFF_A000_1000).replace("4.14.0", release)
    assert told(text).cause.area == area


@pytest.mark.parametrize("names", [("rip", "rsp", "rax", "cr2"), ("rax", "rbx", "rip", "rsp", "cr2")], ids=len)
def test_registers_of_two_threads(names: tuple[str, ...]) -> None:
    """gdb prints those of one after the other: the first are taken, and none of the second, be they few."""
    threads = ((0x1000, names), (0x2000, (*names, "rbp")))
    text = "".join(f"{name:15}{value:#x}  {value}\n" for value, printed in threads for name in printed)
    trace = read_debugger([Line(number, line, None) for number, line in enumerate(text.splitlines())], "test")
    assert trace is not None and trace.cpu is not None
    assert (trace.cpu.rip, trace.cpu.rsp, trace.cpu.cr2) == (0x1000, 0x1000, 0x1000)
    assert "rbp" not in trace.cpu.general


@pytest.mark.parametrize(("code", "kept"), [("14", 0x14), ("4", 4), ("1", None), ("10", None)])
def test_the_code_of_a_segfault_line_that_is_damaged(code: str, kept: int | None) -> None:
    """A program's access has U set: what has not was cut, where the rest of the line is damaged too."""
    found = told(f"demo[12]: segfault at 7ffd8a7c2b10 ip 00007ffd8a7c2b10 sp 00007~f?8a7c2b08 error {code} \n")
    assert found.exceptions[0].raised.error_code == kept
    assert found.cause.confidence == "guess" or kept is not None


@pytest.mark.parametrize("code", ["0 3", "0x0 3", "2 0"])
def test_an_error_code_that_was_broken_in_two(code: str) -> None:
    found = told(f"fatal page fault in supervisor mode code {code} rip 0xffffffff80a1b2c3 cr2 0xffffffff80200000\n")
    assert found.exceptions[0].raised.error_code is None


@pytest.mark.parametrize("code", ["Bad RIP value.", "Bad RIP val\ufffde.", "Bad RIP"])
def test_words_for_code_that_could_not_be_read_may_be_damaged(code: str) -> None:
    assert told(LATER.format(rip=RIP, code=code, cr2=RIP - 8)).cause.address is None


def test_a_notebook_says_what_is_not_known() -> None:
    found = told(OOPS.format(entries="100067 P4D 1"))
    shown = html.unescape(found._repr_html_())
    assert found.unknown and all(text in shown for text in found.unknown)
