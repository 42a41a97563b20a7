"""Judge a run on an engine that shows nothing but its serial port: the same checks by the guest, read from the text."""

from __future__ import annotations

from collections.abc import Sequence

from fivefold.boot.judge.guest_report import NO_REPORT, GuestReport
from fivefold.boot.judge.serial_text import Judgement, SerialReport
from fivefold.boot.result import Check, Skipped
from fivefold.kernel.report import STATE_DONE, STATE_PANIC, STATE_RUNNING


def report_from_text(judgement: Judgement) -> GuestReport:
    """The last kernel's report, as far as text has it: no areas, and few words."""
    if not judgement.reports:
        return NO_REPORT
    last = judgement.reports[-1]
    words = {"state": STATE_DONE if last.complete else STATE_PANIC if last.bail_out else STATE_RUNNING}
    words |= {name: value for name, value in (("levels", last.levels), ("load_address", last.place)) if value}
    checks = tuple(
        Check(result.name, "guest", result.outcome == "ok") for result in last.results if result.outcome != "skipped"
    )
    skipped = tuple(Skipped(result.name, result.reason) for result in last.results if result.outcome == "skipped")
    return GuestReport(words, {}, checks, skipped, last.bail_out.removeprefix("panic: "))


def checks_of_text(judgement: Judgement, levels: Sequence[int | None]) -> list[Check]:
    """Whether the text is whole, and of one kernel for each of *levels*, in that mode (None: any)."""
    reports, chained = judgement.reports, len(levels) > 1
    wrong = "" if len(reports) == len(levels) else f"{len(reports)} kernels reported, expected {len(levels)}"
    checks = [Check.outside("kexec_arrived" if chained else "one_kernel", wrong)]
    if wrong:
        return checks
    for number, (report, want) in enumerate(zip(reports[:-1], levels, strict=False)):
        name = "kexec_first" if number == 0 else f"kexec_{number + 1}"
        checks.append(Check.outside(f"{name}_kernel", _problem(report)))
        checks.append(Check.outside(f"{name}_mode", _other_mode(report, want)))
    checks.append(Check.outside("serial_report", _problem(reports[-1])))
    return [*checks, Check.outside("mode_expected", _other_mode(reports[-1], levels[-1]))]


def _other_mode(report: SerialReport, want: int | None) -> str:
    return "" if want in (None, report.levels) else f"{report.levels} levels, expected {want}"


def _problem(report: SerialReport) -> str:
    if not report.complete:
        return "the report ends early"
    if report.unreadable:
        return f"{report.unreadable} checks are unreadable"
    return f"failed: {report.failed} checks" if report.failed else ""
