"""The SOURCE of a command and the options that say how to read it, the same for every command.

A command that is decorated with `on_source` gets a `SourceChoice` as its first argument;
its own arguments and options come after SOURCE and before the common options.
"""

from __future__ import annotations

import functools
import inspect
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from fivefold.cli import values
from fivefold.cli.bounds import copies
from fivefold.cli.choices import SYMBOLS_HELP
from fivefold.cli.help_page import SOURCE
from fivefold.cli.printing import over_write
from fivefold.units import hex64

if TYPE_CHECKING:
    from fivefold.memory import Source
    from fivefold.survey.guest.identify import GivenPaging
    from fivefold.survey.second_level.collect import SecondLevelRoot
    from fivefold.survey.space import Space


_Made = TypeVar("_Made")


class LiveRamChoice(StrEnum):
    """How a live guest's memory is read."""

    auto = "auto"
    file = "file"
    process = "process"
    pmemsave = "pmemsave"


@dataclass(frozen=True, slots=True)
class SourceChoice:
    """A source that was named, not opened yet, and what was said about it."""

    name: str
    given: dict[str, Any]
    options: dict[str, Any]
    symbols: str | None = None
    second: tuple[str, int, int | None] | None = None
    """The second-level tables to read through: kind, root, levels."""

    @property
    def progress(self) -> ProgressLine:
        """What a long step tells how far it is."""
        line: ProgressLine = self.options["progress"]
        return line

    def open_source(self) -> Source:
        """Its memory and registers; with second-level tables those of the guest behind them."""
        return behind(self._open_host(), self.second)

    def _open_host(self) -> Source:
        from fivefold.memory import open_source
        from fivefold.survey.guest.ram_holes import with_hole

        try:
            return _told(with_hole(open_source(self.name, **self.options, max_copy=copies()), self.check_given()))
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error

    def check_given(self) -> GivenPaging:
        """What was said of root, mode and width."""
        from fivefold.survey.guest.identify import GivenPaging

        try:
            return GivenPaging(**self.given)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error

    def space_of(self, source: Source) -> Space:
        """The address space in an opened *source*."""
        from fivefold.survey.second_level.sources import refuse_ept
        from fivefold.survey.space import Space

        space = Space(source, self.check_given())
        if self.given["cr3"] is not None and not self.given["force"]:
            refuse_ept(space.source.memory, space.root.value, space.levels)
        space.symbol_file = self.symbols
        if self.symbols is not None:
            _ = space.symbols  # a file that is none is refused before anything is printed
        if space.mode.against:
            print(f"fivefold: read with {space.levels} levels by --force, but {space.mode.against}", file=sys.stderr)
        return space

    def open_space(self) -> Space:
        """The address space in it; the source is closed again where that is refused."""
        if self.second is not None and self.given["cr3"] is None:
            return self._open_tables()
        source = self.open_source()
        try:
            return self.space_of(source)
        except BaseException:  # whatever is raised, the source must not stay open
            source.close()
            raise

    def _open_tables(self) -> Space:
        """The second-level tables themselves, as an address space from the guest's addresses to the host's."""
        from fivefold.survey.guest.evidence import Found
        from fivefold.survey.guest.identify import MODES
        from fivefold.survey.second_level.sources import tables_source
        from fivefold.survey.space import Space

        assert self.second is not None
        source = self._open_host()
        root = _root_in(source, self.second)
        made, read_by = _or_close(source, lambda: tables_source(source, root))
        how = f"given with {root.option}"
        found = Found(read_by.root, how), Found(MODES[read_by.levels], how)
        return _or_close(made, lambda: Space(made, self.check_given(), root=found[0], mode=found[1]))


def _or_close(source: Source, make: Callable[[], _Made]) -> _Made:
    """What *make* returns; *source* is closed where it raises."""
    try:
        return make()
    except BaseException:  # whatever is raised, the source must not stay open
        source.close()
        raise


def _told(source: Source) -> Source:
    """*source*, after saying on stderr how a raw image is read; what cannot be read of it is said when it is closed."""
    source.memory.when_closed(lambda: tell_left_out(source))
    for note in source.notes:
        if "--ram-map" in note:
            print(f"fivefold: {source.name}: {note}", file=sys.stderr)
    return source


def _tell_legend(wanted: bool) -> None:
    if wanted:
        from fivefold.report.sheet import sheet
        from fivefold.report.text.legend import write_legend

        write_legend(sheet())
        raise typer.Exit


LegendOption = Annotated[
    bool,
    typer.Option("--legend", is_eager=True, callback=_tell_legend, help="Say what letters and words mean, and end."),
]


EptOption = Annotated[
    int | None,
    typer.Option(
        "--ept",
        parser=values.address,
        metavar="EPTP",
        help="Read the guest behind these EPT tables: its space with --cr3, else the tables themselves.",
    ),
]
NptOption = Annotated[
    values.RootWithLevels | None,
    typer.Option("--npt", parser=values.rooted, metavar="NCR3[:LEVELS]", help="The same through AMD's nested tables."),
]
VtdOption = Annotated[
    values.RootWithLevels | None,
    typer.Option(
        "--vtd", parser=values.rooted, metavar="ROOT:LEVELS", help="The same through VT-d's second-stage tables."
    ),
]


def choose(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A file (raw, ELF core, kdump, LiME, AVML, Windows crash dump, what VMware, VirtualBox, Xen, Hyper-V, "
            "QEMU, libvirt, Firecracker and Cloud Hypervisor save; also .xz .gz .zst), qmp:SOCKET, libvirt:DOMAIN, "
            "pid:NUMBER, gdb:HOST:PORT, kcore: for this machine, or - for standard input.",
        ),
    ],
    *,
    cr3: Annotated[
        int | None, typer.Option("--cr3", parser=values.address, metavar="VALUE", help="Use this root, a raw CR3.")
    ] = None,
    cr4: Annotated[
        int | None, typer.Option("--cr4", parser=values.address, metavar="VALUE", help="Use this CR4: LA57 is bit 12.")
    ] = None,
    levels: Annotated[
        int | None, typer.Option(parser=values.count(4, 5), metavar="4|5", help="Levels of page tables.")
    ] = None,
    cpu: Annotated[
        int | None,
        typer.Option(
            "--cpu", parser=values.count(0), metavar="N", help="Use the registers of this CPU; CPU 0 otherwise."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Take --levels or --cr4 even where the tables say otherwise.")
    ] = False,
    phys_bits: Annotated[
        int | None,
        typer.Option(
            parser=values.count(32, 52),
            metavar="BITS",
            help="Physical address width (MAXPHYADDR): wider bits are reserved.",
        ),
    ] = None,
    c_bit: Annotated[
        int | None,
        typer.Option(
            "--c-bit",
            parser=values.count(32, 51),
            metavar="N",
            help="The bit of entries that is about encryption (SEV, TDX).",
        ),
    ] = None,
    ept: EptOption = None,
    npt: NptOption = None,
    vtd: VtdOption = None,
    as_if: Annotated[
        dict[str, bool] | None,
        typer.Option(parser=values.controls, metavar="wp=1,…", help="Judge rights as with these: wp, smep, smap, nxe."),
    ] = None,
    ram_map: Annotated[
        str | None, typer.Option(metavar="MAP", help="Where RAM lies, for raw images and gdb: 0-0xa0000,0x100000-…")
    ] = None,
    freeze: Annotated[bool, typer.Option("--freeze", help="Stop a live guest while it is read.")] = False,
    live_ram: Annotated[LiveRamChoice, typer.Option(help="How to read a live QEMU's memory.")] = LiveRamChoice.auto,
    max_unpacked: Annotated[
        int | None,
        typer.Option(
            "--max-unpacked", parser=values.size, metavar="SIZE", help="How far a compressed file may unpack."
        ),
    ] = None,
    symbols: Annotated[
        str | None,
        typer.Option(metavar="FILE", help=SYMBOLS_HELP),
    ] = None,
    timeout: Annotated[
        float, typer.Option(parser=values.seconds, metavar="SECONDS", help="How long a live guest may take to answer.")
    ] = 10.0,
    legend: LegendOption = False,
) -> SourceChoice:
    """Collect what was said."""
    given: dict[str, Any] = {
        "cr3": cr3,
        "cr4": cr4,
        "levels": levels,
        "phys_bits": phys_bits,
        "cpu": cpu,
        "force": force,
    }
    given |= {"c_bit": c_bit, "as_if": as_if or {}}
    options = {"ram_map": ram_map, "freeze": freeze, "live_ram": live_ram.value, "timeout": timeout}
    options["max_unpacked"] = max_unpacked
    more = {**options, "progress": ProgressLine()}
    return SourceChoice(source, given, more, symbols, second_level(ept, npt, vtd))


def second_level(
    ept: int | None, npt: values.RootWithLevels | None, vtd: values.RootWithLevels | None
) -> tuple[str, int, int | None] | None:
    """The second-level tables that were given, if any: kind, root, levels."""
    second: list[tuple[str, int, int | None]] = [] if ept is None else [("ept", ept, None)]
    second += [(kind, one.raw, one.levels) for kind, one in (("npt", npt), ("vtd", vtd)) if one is not None]
    if len(second) > 1:
        raise typer.BadParameter("give one of --ept, --npt and --vtd")
    return second[0] if second else None


def behind(source: Source, second: tuple[str, int, int | None] | None) -> Source:
    """*source*, or the memory of the guest behind *second* in it; *source* is closed where that is refused."""
    if second is None:
        return source
    from fivefold.survey.second_level.sources import guest_source

    root = _root_in(source, second)
    return _or_close(source, lambda: guest_source(source, root))


def _root_in(source: Source, second: tuple[str, int, int | None]) -> SecondLevelRoot:
    from fivefold.survey.second_level.collect import ept_root
    from fivefold.survey.second_level.sources import root_of

    kind, raw, levels = second
    return _or_close(source, lambda: ept_root(raw) if kind == "ept" else root_of(kind, raw, levels, source))


TELL_EVERY: Final = 10.0
"""Seconds between two lines of progress where nothing can be written over; none in gdb, which shows them too late."""


class ProgressLine:
    """Tells how much was read: a line that is written over on a terminal, elsewhere a line now and then."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._next = time.monotonic() + TELL_EVERY

    def __call__(self, done: int, total: int | None) -> None:
        of_all = f" of {total >> 20}" if total else ""
        if self._terminal:
            over_write("" if done == total else f"read {done >> 20}{of_all} MiB")
        elif (now := time.monotonic()) >= self._next:
            self._next = now + TELL_EVERY
            print(f"fivefold: read {done >> 20}{of_all} MiB", file=sys.stderr, flush=True)


@contextmanager
def telling() -> Iterator[Callable[[str], None]]:
    """What a long job calls with what it does: written over on a terminal, elsewhere a line now and then."""
    terminal, due = sys.stderr.isatty(), time.monotonic() + TELL_EVERY

    def tell(doing: str) -> None:
        nonlocal due
        if terminal:
            over_write(doing)
        elif (now := time.monotonic()) >= due:
            due = now + TELL_EVERY
            print(f"fivefold: {doing}", file=sys.stderr, flush=True)

    try:
        yield tell
    finally:
        if terminal:
            over_write("")


def tell_left_out(source: Source) -> None:
    """Say on stderr that damaged pages were passed over, if any were."""
    if pages := source.left_out:
        print(
            f"fivefold: damaged pages of {source.name} were left out: {len(pages)}, the first at {hex64(min(pages))}",
            file=sys.stderr,
        )


def on_source(command: Callable[..., int]) -> Callable[..., int]:
    """Give *command* SOURCE and the common options in place of its first parameter."""
    return on_source_without()(command)


def on_source_without(*left_out: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Like `on_source`, for a command that some of the common options make no sense for: it does not have them."""
    return functools.partial(_spliced, left_out=left_out)


def on_optional_source(command: Callable[..., int]) -> Callable[..., int]:
    """Like `on_source`, for a command that does something without SOURCE, too: then it gets None."""
    return _spliced(command, (), optional=True)


def _spliced(command: Callable[..., int], left_out: tuple[str, ...], *, optional: bool = False) -> Callable[..., int]:
    every = inspect.signature(choose, eval_str=True).parameters
    common = [parameter for name, parameter in every.items() if name not in left_out]
    if optional:
        common[0] = common[0].replace(default=None)
    for parameter in common[1:]:
        parameter.annotation.__metadata__[0].rich_help_panel = SOURCE
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    shown = [common[0], *(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in [*own, *common[1:]])]

    @functools.wraps(command)
    def run(**given: Any) -> int:
        said = {parameter.name: given.pop(parameter.name) for parameter in common}
        return command(None if said["source"] is None else choose(**said), **given)

    # What reads the signature is to see the spliced one, and not the wrapped command's.
    del run.__wrapped__
    run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return run


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON with a stable schema.")]
