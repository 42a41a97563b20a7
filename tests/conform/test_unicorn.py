"""The whole way in this process: cases, outcomes, the report, and what docs/arch.md knows, found without being told."""

from __future__ import annotations

import json

import pytest

from fivefold.cli.commands import run
from fivefold.conform.campaign import Plan, pack, run_part, unpack
from fivefold.conform.judging.report import ConformReport, to_json

PLAN = Plan("unicorn", None, None, ("la48", "la57"), 4000, 3)


@pytest.fixture(scope="module")
def report() -> ConformReport:
    whole = ConformReport("unicorn", "0", 3)
    for part in PLAN.parts():
        whole.merge(run_part(PLAN, part))
    return whole


def test_cases_are_run_and_agree_but_for_what_unicorn_is_known_for(report: ConformReport) -> None:
    assert report.cases > 2500
    assert not report.problems
    rules = {key.rule for key, row in report.rows.items() if row.differs and key.access != "register write"}
    assert "a non-canonical access through the stack raises #SS(0), not #GP(0)" in rules
    assert "page-crossing access into the non-canonical range faults as a whole, before any walk" in rules
    assert "a read-modify-write faults as a write (W/R=1), not as a read that comes first" in rules
    agreeing = {key.rule for key, row in report.rows.items() if row.agrees and not row.differs}
    assert "user access to a supervisor page (U/S=0) faults" in agreeing
    assert "not-present PD entry faults" in agreeing


def test_every_difference_is_in_the_list_of_known_ones(report: ConformReport) -> None:
    fresh = {key.rule: row.smallest for key, row in report.rows.items() if row.unknown}
    assert fresh == {}


def test_the_schema(report: ConformReport) -> None:
    data = to_json(report)
    assert data["schema"] == "fivefold.conform/1"
    assert list(data) == ["schema", "engine", "version", "cases", "seed", "rules"]
    for row in data["rules"]:
        assert set(row) == {
            "rule", "access", "mode", "section", "cases", "agrees", "differs", "known", "smallest", "not_shown",
        }  # fmt: skip
        assert row["cases"] == row["agrees"] + row["differs"]
        assert (row["not_shown"] is None) == (row["cases"] > 0)
        if row["smallest"]:
            assert set(row["smallest"]) == {"case", "listing", "expected", "got"}


def test_a_report_survives_its_state_file(report: ConformReport) -> None:
    again = unpack(json.loads(json.dumps(pack(report))))
    assert (again.rows, again.cases) == (report.rows, report.cases)


def fivefold(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["fivefold", "conform", *words])
    return run()


def test_one_case_by_its_id(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert fivefold(monkeypatch, "--case", "la48:push8:0:wp,nxe:4007a8044233128:", "--strict") == 1
    text = capsys.readouterr().out
    assert "must      #SS(0x0)" in text
    assert "did       #GP(0x0)" in text
    assert fivefold(monkeypatch, "--case", "la57:read8:3:wp,nxe:fff0010044233128:pt=0") == 0
    assert "did       #PF(0x4), CR2=0xfff0010044233128" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--engine", "qemu", "--qemu", "/nowhere/qemu"), "is not a program"),
        (("--case", "la48:read8"), "is no case"),
        (("--cpu", "Z80"), "no CPU"),
        (("--qemu", "/bin/true"), "which version"),
    ],
)
def test_what_cannot_be_run_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], why: str
) -> None:
    assert fivefold(monkeypatch, *words) == 2
    said = capsys.readouterr()
    assert why in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
