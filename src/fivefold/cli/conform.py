"""`fivefold conform`: hold an engine's MMU against the manuals, rule by rule."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fivefold.cli import values
from fivefold.cli.choices import CaseModeChoice
from fivefold.opening import open_to_read

if TYPE_CHECKING:
    from fivefold.conform.engines.base import Engine
    from fivefold.conform.judging.report import ConformReport


class EngineName(StrEnum):
    """What runs the cases."""

    unicorn = "unicorn"
    bochscpu = "bochscpu"
    qemu = "qemu"
    kvm = "kvm"
    bochs = "bochs"


def conform(
    engine: Annotated[
        EngineName | None,
        typer.Option(help="What runs the cases, or ran them for --judge.", show_default=EngineName.unicorn.value),
    ] = None,
    qemu: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="A QEMU, or the folder it is unpacked in; chooses qemu unless kvm is given."),
    ] = None,
    bochs: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="A Bochs, or the folder it is unpacked in; chooses bochs."),
    ] = None,
    cpu: Annotated[str | None, typer.Option(metavar="MODEL", help="CPU model, as the engine names it.")] = None,
    mode: Annotated[CaseModeChoice, typer.Option(help="Paging modes to run in.")] = CaseModeChoice.both,
    cases: Annotated[
        int, typer.Option(parser=values.count(1), metavar="N", help="Cases in all modes together.")
    ] = 20_000,
    seed: Annotated[int, typer.Option(parser=values.count(), metavar="S", help="Seed of the random cases.")] = 1,
    case: Annotated[str | None, typer.Option(metavar="ID", help="Run this case alone, and print its listing.")] = None,
    jobs: Annotated[
        int, typer.Option(parser=values.count(1), metavar="N", help="Processes that run parts of the cases.")
    ] = 1,
    state: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep what is done in FILE, and go on from there.")
    ] = None,
    dask: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Run the parts on this Dask scheduler.")] = None,
    judge: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Judge the serial text of a machine that ran the payload.")
    ] = None,
    payload: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write an ELF file, or an ISO or EFI file by its name, that runs the cases, and stop."
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Known differences fail too.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the rules that agree, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the schema fivefold.conform/1.")] = False,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write JUnit XML too.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page of HTML too.")] = None,
) -> int:
    """Run cases whose outcome the manuals fix on an emulator or hypervisor, and say where it differs.

    Exit status: 0 if nothing differs but what is known, 1 if something does, 2 if no case was run.
    """
    from fivefold.conform.campaign import Plan, run_plan
    from fivefold.conform.cases.case import MODES, parse_case

    modes = tuple(MODES) if mode is CaseModeChoice.both else (mode.value,)
    assumed = MACHINE if judge is not None else EngineName.unicorn.value
    plan = Plan(_engine_name(engine, qemu, bochs) or assumed, qemu or bochs, cpu, modes, cases, seed)
    if payload is not None:
        from fivefold.conform.machine_text import write_payload

        write_payload(plan, payload)
        return 0
    if judge is not None:
        from fivefold.conform.machine_text import judge_text

        with open_to_read(judge) as text:
            report = judge_text(plan, text.read())
    elif case is not None:
        return _one(plan.open(), parse_case(case).id, as_json, strict)
    else:
        report = run_plan(plan, jobs, state, dask)
    return _tell(report, as_json, strict, verbose, junit, html)


MACHINE = "machine"
"""The engine's name for a text where none is given: no difference of it is known."""


def _engine_name(engine: EngineName | None, qemu: str | None, bochs: str | None) -> str | None:
    if bochs:
        return "bochs"
    if qemu and engine is not EngineName.kvm:
        return "qemu"
    return engine.value if engine else None


def _tell(
    report: ConformReport, as_json: bool, strict: bool, verbose: bool, junit: Path | None, html: Path | None
) -> int:
    from fivefold.conform.judging.report import to_json
    from fivefold.report.conform_files import write_html, write_junit
    from fivefold.report.console import ReportConsole
    from fivefold.report.text.conform import print_conform

    for path, write in ((junit, write_junit), (html, write_html)):
        if path is not None:
            with path.open("w", encoding="utf-8") as out:
                write(report, out)
    if as_json:
        json.dump(to_json(report), sys.stdout, indent=1)
        print()
    else:
        print_conform(report, ReportConsole(width=None if sys.stdout.isatty() else 160, highlight=False), verbose)
    if reason := report.incomplete or (None if report.cases else _nothing(report)):
        print(f"fivefold: {reason}", file=sys.stderr)
        return 2
    return _status(report, strict)


def _nothing(report: ConformReport) -> str:
    return f"no case was run: {report.problems[0][1]}" if report.problems else "no case was run"


def _status(report: ConformReport, strict: bool) -> int:
    return 1 if report.unknown or (strict and report.differing) else 0


def _one(engine: Engine, text: str, as_json: bool, strict: bool) -> int:
    """Run one case, and print its listing, what must happen and what did."""
    from fivefold.conform.cases.case import parse_case
    from fivefold.conform.cases.listing import listing
    from fivefold.conform.judging.report import to_json
    from fivefold.conform.run import run_one

    case = parse_case(text)
    report, lines = run_one(engine, case)
    if as_json:
        json.dump(to_json(report), sys.stdout, indent=1)
        print()
    else:
        print(f"case      {case.id}\n{listing(case)}")
        for line in lines:
            print(line)
    if not report.cases:
        return 2
    return _status(report, strict)
