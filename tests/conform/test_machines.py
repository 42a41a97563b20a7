"""The payload on machines: QEMU and Bochs' CPU, with real exceptions in both modes."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

import pytest

from fivefold.conform.campaign import Plan, run_part
from fivefold.conform.cases.case import parse_case
from fivefold.conform.engines.bochscpu import BochscpuEngine
from fivefold.conform.engines.qemu import PROGRAM, QemuEngine
from fivefold.conform.judging.expect import expect
from fivefold.conform.judging.report import ConformReport
from fivefold.conform.payload.records import Trial
from fivefold.conform.run import run_one

NO_QEMU = pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"{PROGRAM} is not installed")
NO_BOCHSCPU = pytest.mark.skipif(
    find_spec("bochscpu") is None and not os.environ.get("FIVEFOLD_REQUIRE_BOCHSCPU"),
    reason="bochscpu-python is not installed",
)
BOTH = ("la48", "la57")


def unknown(report: ConformReport) -> dict[str, object]:
    return {key.rule: row.smallest for key, row in report.rows.items() if row.unknown}


@pytest.mark.qemu
@NO_QEMU
def test_qemu_differs_in_what_is_known_only() -> None:
    report = run_part(Plan("qemu", None, None, BOTH, 3000, 2), range(1200, 2400))
    assert report.cases > 900
    assert {key.mode for key, row in report.rows.items() if row.cases} == set(BOTH)
    assert unknown(report) == {}
    rules = {key.rule for key, row in report.rows.items() if row.differs}
    assert "error code bit 0 (P) is 1 for a reserved bit" in rules


@pytest.mark.qemu
@NO_QEMU
def test_a_machine_that_a_case_stops_does_not_take_the_others_along() -> None:
    engine = QemuEngine()
    report, lines = run_one(engine, parse_case("la48:movcr3:0:wp,nxe:10000004000000:"))
    assert "did       the machine stopped or reset at this case" in lines
    assert report.differing == 1
    legal = [parse_case(f"la48:movcr3:0:wp,nxe:{0x4000000 | 1 << bit:x}:") for bit in (0, 1)]
    bad = parse_case("la48:movcr3:0:wp,nxe:10000004000000:")
    trials = [Trial(case, expect(case, engine.cpu)) for case in (*legal, bad)]
    assert [trial.case for trial, outcome in engine.run(trials) if outcome.stopped] == [bad]
    report, lines = run_one(engine, parse_case("la57:fetch10:3:wp,nxe:fff0010044233ffe:pt2=8000000004334007"))
    assert "did       #PF(0x15), CR2=0xfff0010044234000" in lines
    assert not report.differing


@pytest.mark.bochscpu
@NO_BOCHSCPU
def test_bochs_cpu_differs_in_what_is_known_only() -> None:
    report = run_part(Plan("bochscpu", None, None, BOTH, 4000, 2), range(1000, 4000))
    assert report.cases > 1300
    assert unknown(report) == {}
    assert not report.problems


@pytest.mark.bochscpu
@NO_BOCHSCPU
def test_a_case_leaves_no_decoded_instruction_to_the_next() -> None:
    # The same bytes are run over two pages, and the second page may not be fetched from the second time.
    before, between, last = map(
        parse_case,
        (
            "la57:fetch10:0:wp,nxe:ff017fc4233ffe:pt=4333007,pt2=4334007",
            "la57:read8:0:wp,nxe:fff0010084494db8:",
            "la57:fetch10:0:wp,nxe:f5010084233ffe:pt=4333007,pt2=8000000004334007",
        ),
    )
    engine = BochscpuEngine()
    trials = [Trial(case, expect(case, engine.cpu)) for case in (before, between, last)]
    report = ConformReport(engine.name, engine.version, 0)
    for trial, outcome in engine.run(trials):
        report.add(trial.case, trial.expected, outcome)
    assert report.cases == 3
    assert unknown(report) == {}
