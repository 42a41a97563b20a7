"""`fivefold dump`: what an address space maps, in the format that is asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import typer

from fivefold.cli import values
from fivefold.cli.choices import BitsChoice
from fivefold.cli.source_options import JsonOption, SourceChoice, on_source

SHORT: Final = 16
"""In text a shared table with more ranges than this is listed once, and then how often it is there again."""

if TYPE_CHECKING:
    from fivefold.survey.scan.regions import Region
    from fivefold.survey.scan.select import RightsFilter
    from fivefold.survey.space import Space


class DumpFormat(StrEnum):
    """How to print it."""

    text = "text"
    ptdump = "ptdump"
    info_tlb = "info-tlb"
    json = "json"
    csv = "csv"


@on_source
def dump(
    chosen: SourceChoice,
    format: Annotated[
        DumpFormat, typer.Option(help="ptdump: as the guest's own page_tables file. info-tlb: as QEMU prints it.")
    ] = DumpFormat.text,
    as_json: JsonOption = False,
    window: Annotated[
        range | None,
        typer.Option(
            "--range", parser=values.window, metavar="A-B", help="Only these addresses; the end is exclusive."
        ),
    ] = None,
    user: Annotated[bool, typer.Option("--user", help="Only the lower half.")] = False,
    kernel: Annotated[bool, typer.Option("--kernel", help="Only the upper half.")] = False,
    rights: Annotated[
        str | None, typer.Option(metavar="LETTERS", help="Only regions with these rights: wx, or x-w for x without w.")
    ] = None,
    leaf: Annotated[
        bool, typer.Option("--leaf/--effective", help="Show and choose by the leaf's rights, or the whole path's.")
    ] = False,
    phys: Annotated[
        bool, typer.Option("--phys", help="Start a new region where physical addresses are not contiguous.")
    ] = False,
    bits: Annotated[
        BitsChoice | None,
        typer.Option(help="few: without accessed, dirty, software bits and key; all is the default of json and csv."),
    ] = None,
    all: Annotated[bool, typer.Option("--all", help="Unfold shared tables in text; print however many lines.")] = False,
    build: Annotated[
        str, typer.Option(metavar="KEY=VALUE,...", help="ptdump: what the kernel's build decides, see docs/look.md.")
    ] = "",
) -> int:
    """Print what is mapped: addresses, page size, effective rights, physical addresses, names of areas.

    Status 1 when entries are malformed, tables are not in memory, or lead back to themselves or to two levels.
    """
    asked = DumpFormat.json if as_json else format
    part = _part(window, user, kernel)
    narrowed = rights is not None or leaf or phys or bits is not None
    if build and asked is not DumpFormat.ptdump:
        raise typer.BadParameter("--build is of --format ptdump; expected both or none of them")
    with chosen.open_space() as space:
        if asked is DumpFormat.ptdump:
            _refuse_narrowing(asked, narrowed or part is not None)
            return _write_ptdump(space, build, all)
        if asked is DumpFormat.info_tlb:
            _refuse_narrowing(asked, narrowed)
            return _write_info_tlb(space, part, all)
        regions = _regions(space, asked, part, phys, bits, all or rights is not None)
        return _write(space, asked, _chosen(regions, _filter(rights, leaf)), leaf)


def _part(window: range | None, user: bool, kernel: bool) -> range | None:
    """The addresses that are asked for, None for all."""
    from fivefold.survey.scan.select import KERNEL_HALF, USER_HALF, meet

    if user and kernel:
        raise typer.BadParameter("--user and --kernel leave nothing; expected one of them")
    for half, wanted in ((USER_HALF, user), (KERNEL_HALF, kernel)):
        window = meet(window, half if wanted else None)
    if window is not None and not window:
        raise typer.BadParameter("--range has nothing in common with the half that is asked for")
    return window


def _refuse_narrowing(asked: DumpFormat, narrowed: bool) -> None:
    if narrowed:
        parts = "--range, --user, --kernel, " if asked is DumpFormat.ptdump else ""
        raise typer.BadParameter(
            f"--format {asked.value} prints what another program would; "
            f"expected it without {parts}--rights, --leaf, --phys and --bits, or --format text, json or csv"
        )


def _filter(rights: str | None, leaf: bool) -> RightsFilter | None:
    from fivefold.survey.scan.select import RightsFilter

    try:
        return None if rights is None else RightsFilter.parse(rights, of_leaf=leaf)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="'--rights'") from error


def _regions(
    space: Space, asked: DumpFormat, part: range | None, phys: bool, bits: BitsChoice | None, unfold: bool
) -> Iterable[Region]:
    from fivefold.arch import TooManyRuns
    from fivefold.errors import FivefoldError
    from fivefold.survey.scan.repeats import regions_with_repeats

    is_text = asked is DumpFormat.text
    exact = (bits or (BitsChoice.few if is_text else BitsChoice.all)) is BitsChoice.all
    try:
        if is_text:
            return space.regions(part, all_bits=exact, contiguous=phys, repeat_above=None if unfold else SHORT)
        return regions_with_repeats(space, part, all_bits=exact, contiguous=phys)
    except TooManyRuns as error:
        raise FivefoldError(f"{error}; expected --range for a part of them") from error


def _chosen(regions: Iterable[Region], rights: RightsFilter | None) -> Iterable[Region]:
    return regions if rights is None else filter(rights.lets, regions)


def _write(space: Space, asked: DumpFormat, regions: Iterable[Region], leaf: bool) -> int:
    from fivefold.report.sheet import sheet
    from fivefold.report.text.dump import NOT_LOOKED_AT, Findings, loops_of, write_csv, write_json, write_text

    findings = Findings(regions)
    if asked is DumpFormat.json:
        write_json(space, findings, sys.stdout)
    elif asked is DumpFormat.csv:
        write_csv(space, findings, sys.stdout)
    else:
        write_text(space, findings, sheet(), of_leaf=leaf)
    loops = loops_of(space)
    sentences = [findings.sentence()] if findings.kept else []
    for sentence in [*sentences, *(loop["message"] for loop in loops)]:
        print(f"fivefold: {sentence}", file=sys.stderr)
    return int(bool(sentences) or any(loop["what"] != NOT_LOOKED_AT for loop in loops))


def _write_ptdump(space: Space, build: str, unlimited: bool) -> int:
    from fivefold.report.ptdump_headings import headings, parse_build
    from fivefold.report.ptdump_lines import MAX_PIECES, write_ptdump
    from fivefold.survey.ptdump_walk import TableWalk

    try:
        markers, guessed = headings(space, parse_build(build))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if guessed:
        print(f"fivefold: {guessed}; see --build", file=sys.stderr)
    walk = TableWalk(space.plain_tables)
    write_ptdump(walk, markers, print, limit=None if unlimited else MAX_PIECES)
    return _say_missing([table.table for table in walk.unreadable])


def _write_info_tlb(space: Space, part: range | None, unlimited: bool) -> int:
    from fivefold.errors import FivefoldError
    from fivefold.report.text.tlb import MAX_LINES, write_leaves
    from fivefold.survey.scan.leaves import Leaves

    leaves = Leaves(space.plain_tables)
    count = 0 if unlimited else leaves.count() if part is None else leaves.count_in(part, MAX_LINES)
    if count > MAX_LINES:
        raise FivefoldError(f"{count} leaves are more than {MAX_LINES} lines; expected --range for fewer, or --all")
    write_leaves(leaves.tables(part or range(1 << 64)), sys.stdout)
    return _say_missing(leaves.missing)


def _say_missing(tables: Sequence[int]) -> int:
    if not tables:
        return 0
    print(f"fivefold: {len(tables)} tables are not in memory; the first at {tables[0]:#x}", file=sys.stderr)
    return 1
