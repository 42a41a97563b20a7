"""What kernels reported on a serial port, for people."""

from __future__ import annotations

from fivefold.boot.judge.serial_text import Judgement, SerialReport
from fivefold.report.sheet import Writable
from fivefold.units import hex64


def write_judgement(judgement: Judgement, out: Writable) -> None:
    """A line for each kernel, what is wrong with it below, and the verdict."""
    for report in judgement.reports:
        out.write(f"{_who(report)}: {_sum(report)}\n")
        for line in _problems(report):
            out.write(f"  {line}\n")
        for result in report.results:
            if result.outcome == "skipped":
                out.write(f"  skipped {result.name}: {result.reason}\n")
    if judgement.lacks_next:
        out.write("  started another kernel, of which the text has no report\n")
    count = len(judgement.reports)
    verdict = "passed" if judgement.ok else "failed"
    out.write(f"{verdict}: {count} report{'' if count == 1 else 's'}\n")


def _who(report: SerialReport) -> str:
    place = "" if report.place is None else f", image at {hex64(report.place)}"
    return f"{report.mode or 'a mode that the text does not give'}{place}"


def _sum(report: SerialReport) -> str:
    of = f" of {report.planned}" if report.planned else ""
    more = [f"{count} {what}" for count, what in ((report.failed, "failed"), (report.skipped, "skipped")) if count]
    return ", ".join([f"{report.passed}{of} passed", *more])


def _problems(report: SerialReport) -> list[str]:
    told = [f"FAILED {name or 'a check whose name is lost'}" for name in report.failures]
    if report.bail_out:
        told.append(f"gave up: {report.bail_out}")
    if report.saved:
        told.append("hibernated; the next report goes on with this one")
    elif not report.complete:
        last = f"after the check {report.results[-1].name}" if report.results else "before the first check"
        told.append(f"the text ends early: no plan and no sum {last}")
    elif report.planned is None:
        told.append("the plan and the sum are unreadable: how many checks there should be is not known")
    elif report.unreadable:
        told.append(f"the outcome of {report.unreadable} checks is unreadable, and so is the sum")
    return told
