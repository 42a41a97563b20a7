"""Small parts that the readers of all formats share, each by itself."""

from __future__ import annotations

from fivefold.explain.logs.bochs_log import _with_reasons
from fivefold.explain.logs.foreign.firmware import read_firmware
from fivefold.explain.logs.foreign.xen import read_xen
from fivefold.explain.logs.register_file import cpu_of, text_of
from fivefold.explain.logs.text.lines import GAP, Line, without_doubles
from fivefold.explain.logs.trace import EmulatorReason, RaisedException
from fivefold.memory import CpuState


def lines(*texts: str) -> list[Line]:
    return [Line(number, text, None) for number, text in enumerate(texts, 1)]


def test_no_number_is_no_cpu() -> None:
    assert cpu_of("oops", {}) is None
    assert cpu_of("oops", {"cr2": 0}) == CpuState("oops", general={}, segments={}, cr2=0)
    assert cpu_of("oops", {"rax": 1, "cr3": 2, "efer": 3}) == CpuState(
        "oops", general={"rax": 1}, segments={}, cr3=2, efer=3
    )


def test_a_text_ends_at_a_gap_or_where_another_report_begins() -> None:
    some = lines("Oops: 0000 [#1]", "RAX", "RBX", "Oops: 0000 [#2]", "RCX")
    assert text_of(some, 0, 9) == "Oops: 0000 [#1]\nRAX\nRBX"
    assert text_of(some, 1, 1) == "RAX"
    assert text_of(some, 3, 9) == "Oops: 0000 [#2]\nRCX"
    assert text_of([*some[:2], GAP, *some[2:]], 0, 9) == "Oops: 0000 [#1]\nRAX"


def test_lines_that_all_come_twice_are_of_two_consoles() -> None:
    texts = [f"line {number}" for number in range(8)]
    twice = lines(*(text for text in texts for _ in range(2)))
    assert [line.text for line in without_doubles(twice)] == texts
    # Seven in a row may be of two CPUs that do the same.
    assert without_doubles(twice[:14]) == twice[:14]
    broken = lines(*(text for text in texts[:4] for _ in range(2)), "once", *(t for t in texts[4:] for _ in range(2)))
    assert without_doubles(broken) == broken


def test_blank_lines_and_repeated_ones_are_no_pairs() -> None:
    blank = lines(*[""] * 40)
    assert without_doubles(blank) == blank
    texts = ["a", "a", "b", "", "c", "d", "e", "f", "g", "h"]
    twice = lines("before", *(text for text in texts for _ in range(2)), "after")
    assert [line.text for line in without_doubles(twice)] == ["before", *texts, "after"]


XEN = """\
(XEN) ----[ Xen-4.17.3  x86_64  debug=n  Not tainted ]----
rax: 1111111111111111   cr2: 2222222222222222
(XEN) CPU:    2
(XEN) RIP:    e008:[<ffff82d04031a8c2>] demo_map+0x32/0x90
(XEN) cr3: 000000043a3b2000   cr2: 0000000000000040
(XEN) FATAL PAGE FAULT
(XEN) [error_code=0002]
(XEN) Faulting linear address: 0000000000000040
"""


def test_lines_between_those_of_xen_are_of_a_guest() -> None:
    """In a long log, too, where lines have no number."""
    for number in (0, 1, 7):
        found = read_xen([Line(number, text, None) for text in XEN.splitlines()], "log")
        assert found is not None
        (raised,) = found.exceptions
        assert (raised.vector, raised.error_code, raised.cr2, raised.symbol) == (14, 2, 0x40, "demo_map+0x32")
        assert raised.cpu is not None and raised.cpu.cr2 == 0x40 and "rax" not in raised.cpu.general


def test_the_reason_of_a_gate_is_that_of_the_last_exception_where_the_first_are_lost() -> None:
    limit = EmulatorReason("vector must be within IDT table limits, IDT.limit = 0x0", "idt-limit")
    chain = [RaisedException(13, line=1), RaisedException(13, line=2)]
    for is_cut, wanted in ((True, [None, limit]), (False, [None, None])):
        assert [one.reason for one in _with_reasons(chain, [limit], None, is_cut)] == wanted
    nested = [RaisedException(14, line=1), RaisedException(13, during=14, line=2), RaisedException(8, line=3)]
    assert [one.reason for one in _with_reasons(nested, [limit, limit], None, False)] == [None, limit, None]


def test_tables_of_a_report_of_uefi() -> None:
    text = """!!!! X64 Exception Type - 0E(#PF - Page-Fault)  CPU Apic ID - 00000000 !!!!
ExceptionData - 0000000000000000
RIP  - 000000007E5A1C2F, CS  - 0000000000000038, RFLAGS - 0000000000010246
CR0  - 0000000080010033, CR2 - 0000000000000010, CR3 - 000000007FC01000
GDTR - 000000007F9EE698 0000000000000047, LDTR - 0000000000000000
IDTR - 000000007F2DC018 0000000000000FFF,   TR - 0000000000000000"""
    found = read_firmware(lines(*text.splitlines()), "log")
    assert found is not None and found.cpu is not None
    assert found.cpu.gdt == (0, 0x7F9EE698, 0x47, 0) and found.cpu.idt == (0, 0x7F2DC018, 0xFFF, 0)
    assert found.cpu.segments["cs"][:3] == (0x38, 0, 0xFFFF_FFFF)
