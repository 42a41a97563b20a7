"""One cause is one row: outcomes as engines really give them, and the rule that each is told under."""

from __future__ import annotations

import pytest

from fivefold.arch import Cpu, Vendor
from fivefold.conform.cases.case import parse_case
from fivefold.conform.judging.expect import expect
from fivefold.conform.judging.outcome import CaseOutcome, checks

CPU = Cpu(phys_bits=40)


@pytest.mark.parametrize(
    ("bits", "rule"), [(0x100, "reserved bits of a PML4 entry: bit 8 (AMD)"), (0x180, "CLFLUSH is subject")]
)
def test_bit_8_alone_is_to_blame_where_nothing_else_is_reserved(bits: int, rule: str) -> None:
    case = parse_case(f"la48:clflush:0::7a8044233128:pml4={0x4001007 | bits:x}")
    expected = expect(case, Cpu(phys_bits=40, vendor=Vendor.AMD))
    wrong = [check.rule for check in checks(case, expected, CaseOutcome(3)) if not check.agrees]
    assert len(wrong) == 1
    assert wrong[0].startswith(rule)


@pytest.mark.parametrize(
    ("case", "outcome", "rule"),
    [
        ("la48:accessed:3:wp,smap,ac:7a8044233128:pt=4333005", CaseOutcome(14, 3, 0x7A8044233128), "SMAP: implicit"),
        ("la48:accessed:3:wp:7a8044233128:pt=4333001", CaseOutcome(14, 3, 0x7A804423312D), None),
        ("la48:accessed:3:wp:7a8044233128:pt=4333001", CaseOutcome(14, 3, 0x7A8044234000), "an implicit supervisor"),
        ("la48:accessed:0:wp,smap,ac,pke:7f8084498301:pt=1000000004398005,pkru=10818210",
         CaseOutcome(14, 3, 0x7F8084498306), "SMAP: implicit"),
        ("la48:iretq:3:smap:7a8044233128:", CaseOutcome(14, 1, 0x4101ED8), "RET and IRET"),
        ("la48:iretq:0::800000001000:", CaseOutcome(13, 0, rip=0x800000001000), "a jump or return to a non-canonical"),
        ("la48:clflush:0:pks:ffffc47fc451d940:pt=283000000421d027,pkrs=c000a6c0",
         CaseOutcome(14, 0x21, 0xFFFFC47FC451D940), "protection keys: PKRU is for user pages"),
        ("la57:cmpxchg8:0:nxe,smep,smap,ac:ffff010044233ffb:pt=433300d,pt2=0",
         CaseOutcome(0, problem="Bochs gave up: asked to set dirty", stopped=True), "a supervisor's write to"),
    ],
)  # fmt: skip
def test_the_rule_that_a_difference_is_told_under(case: str, outcome: CaseOutcome, rule: str | None) -> None:
    parsed = parse_case(case)
    wrong = [check.rule for check in checks(parsed, expect(parsed, CPU), outcome) if not check.agrees]
    assert len(wrong) == (rule is not None), wrong
    assert all(found.startswith(rule or "") for found in wrong)
