"""Cases of steps: what an engine may still use after a store, and which kernel's mistake it shows."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

from fivefold.arch import Cpu
from fivefold.conform.cases.case import CaseError, parse_case
from fivefold.conform.cases.product import systematic
from fivefold.conform.engines.base import Engine
from fivefold.conform.engines.registry import open_engine
from fivefold.conform.judging.expect import expect
from fivefold.conform.judging.outcome import CaseOutcome, checks
from fivefold.conform.judging.report import ConformReport
from fivefold.conform.judging.stale_answers import UNDECIDABLE
from fivefold.conform.run import run_cases, run_one

STEPS = [case for case in systematic() if case.what.stale is not None]
FORGETS = "a kernel that forgets to invalidate is caught: the old translation is used"
RELIES = "a kernel that relies on a load of CR3 to drop a global page is caught: the old translation is used"
OTHER = "a kernel that relies on INVLPG of another page is caught: the old translation is used"
TABLE = "a kernel that forgets to invalidate after it took a table away is caught: the old translation is used"
OTHER_TABLE = OTHER.replace(" is caught", " after it took a table away is caught")
GLOBAL = "a kernel that relies on {} to drop a global page is caught: the old translation is used"
KEEP = "a load of CR3 with bit 63 set"
LARGE = FORGETS.replace(" is caught", " a 2 MiB page is caught")
WITHOUT_PCID = {FORGETS: True, RELIES: False, OTHER: True, TABLE: True, OTHER_TABLE: True, LARGE: True}
"""What TCG shows, which has no PCIDs."""
WITH_PCID = {
    **WITHOUT_PCID,
    RELIES: True,
    GLOBAL.format("INVPCID of the address"): True,
    GLOBAL.format("INVPCID of the PCID"): True,
    GLOBAL.format("INVPCID of all PCIDs but no global pages"): True,
    GLOBAL.format(KEEP): True,
    f"a kernel that relies on {KEEP} is caught: the old translation is used": False,
}
HAS_BOCHSCPU = find_spec("bochscpu") is not None or os.environ.get("FIVEFOLD_REQUIRE_BOCHSCPU")
BOCHSCPU = pytest.mark.skipif(not HAS_BOCHSCPU, reason="bochscpu-python is not installed")


def shown(engine: Engine) -> dict[str, bool]:
    """Which mistakes of a kernel *engine* shows; nothing may differ, and there is no other answer than two."""
    report: ConformReport = run_cases(engine, STEPS)
    assert not report.problems
    assert not report.differing
    rows = {key.rule: row for key, row in report.rows.items() if key.rule.startswith("a kernel")}
    assert all(row.cases or row.not_shown == UNDECIDABLE for row in rows.values())
    return {rule: bool(row.cases) for rule, row in rows.items()}


def test_unicorn_keeps_a_translation_and_drops_global_ones_with_the_others() -> None:
    assert shown(open_engine("unicorn")) == WITHOUT_PCID


@pytest.mark.qemu
def test_so_does_qemu() -> None:
    assert shown(open_engine("qemu")) == WITHOUT_PCID


@pytest.mark.bochscpu
@BOCHSCPU
def test_bochs_keeps_global_pages_over_a_load_of_cr3() -> None:
    assert shown(open_engine("bochscpu")) == WITH_PCID


def test_an_engine_that_invents_an_answer_differs() -> None:
    case = parse_case("la48:staleinvlpg:0:wp,nxe:fffff80044233128:new=4332007")
    old, new = 0x00CF_F300_0133_00CC, 0x00CF_F300_0132_00CC
    for value, agrees in ((new, True), (old, False), (old + 1, False)):
        found = list(checks(case, expect(case, Cpu(phys_bits=40)), CaseOutcome(3, value=value)))
        assert [check.agrees for check in found] == [agrees]


def test_one_case_says_what_it_shows() -> None:
    _, lines = run_one(open_engine("unicorn"), parse_case("la57:stalenone:0:wp,nxe:fff0010044233128:new=0"))
    assert lines[0] == "must      #PF(0x0) or 0x00cff300013300cc is read"
    assert f"shows     {FORGETS}" in lines
    _, lines = run_one(open_engine("unicorn"), parse_case("la48:stalecr3:0:wp,pge:fffff80044233128:pt=4333107,new=0"))
    assert f"shows     {UNDECIDABLE}" in lines


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("la48:stalenone:0:wp:fffff80044233128:pt=0,new=0", "first access of steps goes ahead"),
        ("la48:stalenone:0:wp:fffff80044233128:new=9007", "a page of steps is data"),
        ("la48:stalenone:0:wp,smap:fffff80044233128:new=0", "with wp, nxe, pge and pcide"),
        ("la48:stalenone:0:wp:fffff80044233128:pd=0,new=0", "leaf entry alone"),
        ("la48:stalekeep:0:wp:fffff80044233128:new=0", "needs pcide"),
        ("la48:stalepdnone:0:wp:fffff80044233128:new=4002007", "is taken away"),
        ("la48:stalenone:3:wp:fffff80044233128:new=0", "privilege level 0"),
    ],
)
def test_steps_that_cannot_be_run(text: str, why: str) -> None:
    with pytest.raises(CaseError, match=why):
        parse_case(text)
