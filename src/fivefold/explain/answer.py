"""The one function: a log, a memory or plain numbers in, an explanation out."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

from fivefold import _arguments
from fivefold.arch import TableReader
from fivefold.errors import FivefoldError, FormatError
from fivefold.explain.address_area import describe
from fivefold.explain.area_names import AreaNames
from fivefold.explain.cause import blamed, find_cause
from fivefold.explain.faults.suspicious_state import suspicious_state
from fivefold.explain.headline import headline
from fivefold.explain.left_open import left_open
from fivefold.explain.logs.event_line import pair_up
from fivefold.explain.logs.links import link
from fivefold.explain.logs.read_log import open_log, read_log
from fivefold.explain.logs.text.excerpts import Progress
from fivefold.explain.logs.trace import Levels, RaisedException, Trace
from fivefold.explain.memory_names import carried_symbols, seen_in, slide_in
from fivefold.explain.naming import Naming, frames_of, name_addresses
from fivefold.explain.predict import first_exception, follow, given_exception
from fivefold.explain.remedy import legal_changes, missing_link
from fivefold.explain.result import ExplainedException, Explanation
from fivefold.explain.rules.mode_evidence import proven_levels, release_known
from fivefold.explain.rules.situation import PAGING_NAMES, GivenState, Situation, situation
from fivefold.explain.story import Story
from fivefold.explain.what_if import ask
from fivefold.machine.base import Event as MachineEvent
from fivefold.machine.base import ExceptionRecord, Machine, Registers, Shutdown
from fivefold.memory import LIVE, CpuState, Segment, Source, is_memory, is_snapshot, open_source
from fivefold.symbols import Symbols, read_symbols
from fivefold.units import hex64

if TYPE_CHECKING:
    from fivefold.survey.guest.areas import AreaMap
    from fivefold.survey.space import Space

_ZSTD: Final = b"\x28\xb5\x2f\xfd"


def explain(
    log: str | os.PathLike[str] | BinaryIO | Trace | None = None,
    memory: str | os.PathLike[str] | Source | Space | TableReader | None = None,
    *,
    given: GivenState | None = None,
    addresses: Sequence[int] = (),
    what_if: Sequence[str] = (),
    symbols: str | os.PathLike[str] | Symbols | None = None,
    follow: bool = False,
    progress: Progress | None = None,
    **numbers: int,
) -> Explanation:
    """Explain a fault.

    *log* is a log in any of the known formats, or a source of memory that has registers too (an
    ELF core, ``qmp:SOCKET``); *memory* the guest's physical memory, also as an open `Space`. Either may be left out,
    and *numbers* (``cr2=…, error_code=…``; see `GivenState`) go before what they say. *addresses* are
    described besides; *symbols* (System.map, kallsyms, vmlinux) names them; *what_if* asks the same access under
    changes (see `what_if.ask`). With *follow* a log that grows is waited for until its first fatal exception.

    `FormatError` for what is no log, `CannotOpenError` (an `OSError`) for a file that cannot be opened, `TypeError` or
    `ValueError` for numbers or changes that make no sense. A fault that cannot be explained is an answer, with rule
    ``unknown``.
    """
    _arguments.keywords("explain", numbers, GivenState.__dataclass_fields__)
    if not (log is None or isinstance(log, str | os.PathLike | Trace) or hasattr(log, "read")):
        raise TypeError(f"log is {log!r}; expected the name of a file, an open file, a Trace or None")
    if not (
        memory is None or isinstance(memory, str | os.PathLike | Source | _space_class()) or hasattr(memory, "read")
    ):
        raise TypeError(f"memory is {memory!r}; expected the name of a source, a Source, a Space, a reader or None")
    given = replace(given or GivenState(), **numbers)
    space: Space | None = None
    if isinstance(memory, _space_class()):
        space = cast("Space", memory)
        given = given if given.phys_bits is not None else replace(given, phys_bits=memory.given.phys_bits)
        memory = space.source
    with ExitStack() as stack:
        if isinstance(log, str | os.PathLike) and is_source(os.fspath(log)):
            log, memory = None, memory if memory is not None else log
        if isinstance(memory, str | os.PathLike):
            memory = stack.enter_context(open_source(os.fspath(memory)))
        reader = memory.memory if isinstance(memory, Source) else cast("TableReader | None", memory)
        cpus = memory.cpus if isinstance(memory, Source) else ()
        trace = _trace(log, stack, follow, progress)
        if trace is None:
            name = memory.name if isinstance(memory, Source) else "numbers"
            trace = _from_registers(name, reader, given, cpus, bool(addresses))
        elif not trace.exceptions:
            trace = _complete(trace, reader, given)
        areas = _areas_of(space, memory if isinstance(memory, Source) else None)
        naming = None
        source = memory if isinstance(memory, Source) else None
        if symbols is not None:
            table = symbols if isinstance(symbols, Symbols) else read_symbols(symbols)
            trace, naming = name_addresses(trace, table, slide_in(space, source))
        elif (carried := carried_symbols(space, source, trace, cpus if log is None else ())) is not None:
            trace, naming = name_addresses(trace, carried)
        found = _explain(trace, reader, given, _final(trace, cpus), addresses, what_if, areas, naming)
        return replace(found, remarks=(*found.remarks, *seen_in(space, source, cpus if log is None else (), naming)))


def explain_event(event: MachineEvent, machine: Machine) -> Explanation:
    """Why a run on one of our engines ended: from its exceptions, registers and memory.

    For an end that is no shutdown the story is what the instruction at RIP would do.
    """
    cpu, unknown = _cpu_of(event, machine)
    given = GivenState(phys_bits=machine.cpu.phys_bits)
    if not isinstance(event, Shutdown) or not event.records:
        trace = _complete(Trace(machine.name, "engine's registers", cpu=cpu), machine.memory, given)
    else:
        exceptions = pair_up([_raised(record, cpu) for record in event.records])
        earlier = [_raised(record, cpu) for record in _before(machine, event)]
        while earlier and (linked := link(earlier[-1], exceptions[0])):
            exceptions = (earlier.pop(), linked, *exceptions[1:])
        trace = Trace(
            machine.name, "engine's events", exceptions, "triple-fault", cpu, total=len(exceptions), unknown=unknown
        )
    return _explain(trace, machine.memory, given, cpu, (), ())


def _space_class() -> type[Any]:
    """`Space`, or a class without instances as long as nothing has imported it: it needs numpy, which this does not."""
    module = sys.modules.get("fivefold.survey.space")
    found: type[Any] = module.Space if module is not None else _NoSpace
    return found


class _NoSpace:
    """Stands for `Space` before it is imported."""


def _areas_of(space: Space | None, source: Source | None) -> Callable[[], AreaMap | None]:
    """Asks the memory for the areas of its kernel; only when an address is to be named, because that is a scan."""

    def ask() -> AreaMap | None:
        if space is not None:
            return space.areas
        if source is None:
            return None
        from fivefold.survey.space import Space

        try:
            return Space(source).areas
        except (FivefoldError, OSError):
            return None  # no root, or tables that cannot be read: nothing is named

    return ask


def _cpu_of(event: MachineEvent, machine: Machine) -> tuple[CpuState, tuple[str, ...]]:
    """The registers of the CPU that *event* happened on, and what to say where that is not known.

    Nothing runs after a shutdown, so RIP and RSP of the last exception are still those of its CPU.
    """
    ask = getattr(machine, "all_registers", None)
    every = list(ask()) if ask is not None else []
    if len(every) < 2 or not isinstance(event, Shutdown) or not event.records:
        return cpu_state(machine.registers(), machine.name), ()
    last = event.records[-1]
    own = [one for one in every if (one.rip, one.rsp) == (last.rip, last.rsp)]
    if len(own) == 1:
        return cpu_state(own[0], machine.name), ()
    words = f"which of the {len(every)} CPUs it happened on is not known, and so neither its registers nor its tables"
    return CpuState(machine.name), (words,)


def _before(machine: Machine, event: Shutdown) -> tuple[ExceptionRecord, ...]:
    """The exceptions before those of *event*, where the engine remembers them."""
    history: tuple[ExceptionRecord, ...] = getattr(machine, "exceptions", ())
    end = len(history) - len(event.records)
    return history[:end] if end > 0 and history[end:] == event.records else ()


def _raised(record: ExceptionRecord, cpu: CpuState) -> RaisedException:
    """An engine's record; the registers are those at the end, the two that the record has are its own."""
    general = {**cpu.general, "rip": record.rip, "rsp": record.rsp}
    vector, code, cr2, rip, rsp = record
    return RaisedException(vector, None, code, cr2, rip, rsp, cpu=replace(cpu, general=general, cr2=cr2 or cpu.cr2))


def cpu_state(registers: Registers, source: str) -> CpuState:
    """An engine's registers in the form that logs and cores have them."""
    names = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))
    general = {name: getattr(registers, name) for name in (*names, "rip", "rflags", "cpl")}
    tables = {"gdt": registers.gdt, "idt": registers.idt}
    segments = {name: Segment(0, table.base, table.limit, 0) for name, table in tables.items() if table}
    return CpuState(
        source, registers.cr0, registers.cr2, registers.cr3, registers.cr4, registers.efer, general, segments
    )


# -- what there is to go on ------------------------------------------------------------------


def is_source(name: str) -> bool:
    """Whether *name* is memory with registers rather than a log, by prefix or first bytes."""
    if name.startswith(LIVE) or is_snapshot(name):
        return True
    if name == "-" or _is_pipe(name):  # memory cannot be read from one
        return False
    with open_log(name) as file:
        # No log comes in zstd; a core may.
        head = file.read(16)
        return is_memory(head) or head.startswith(_ZSTD)


def _is_pipe(name: str) -> bool:
    with suppress(OSError):
        return stat.S_ISFIFO(Path(name).stat().st_mode)
    return False


def _trace(log: Any, stack: ExitStack, follow: bool, progress: Progress | None) -> Trace | None:
    if log is None or isinstance(log, Trace):
        return log
    if isinstance(log, str | os.PathLike):
        name = os.fspath(log)
        with open_log(name) as stream:
            return read_log(stream, "standard input" if name == "-" else name, follow=follow, progress=progress)
    return read_log(log, str(getattr(log, "name", "the log")), follow=follow, progress=progress)


def _from_registers(
    name: str, memory: TableReader | None, given: GivenState, cpus: Sequence[CpuState], may_be_empty: bool
) -> Trace:
    """What registers and memory lead to: on the first CPU that is about to fault, else on the first."""
    if not cpus and not given and not may_be_empty:
        raise FormatError(
            f"there are no registers in {name}; expected a log, a core with registers, or numbers such as --cr2, --cr3"
        )
    traces = [
        _complete(Trace(name, "registers", cpu=cpu, remarks=_which(number, cpus)), memory, given)
        for number, cpu in enumerate(cpus or [CpuState("what was given")])
    ]
    found = next((trace for trace in traces if trace.exceptions), traces[0])
    if found.exceptions or cpus:
        return found
    more = "--cr2 and --error-code say which access was refused" + ("" if memory else ", --memory shows its walk")
    return replace(found, says=f"no exception follows from these numbers; {more}")


def _which(number: int, cpus: Sequence[CpuState]) -> tuple[str, ...]:
    return (f"this is CPU {number} of {len(cpus)}",) if len(cpus) > 1 else ()


def _final(trace: Trace, cpus: Sequence[CpuState]) -> CpuState | None:
    """The CPU of the memory source that the trace is about: the only one, or the one at the same RIP."""
    if len(cpus) == 1:
        return cpus[0]
    rips = {raised.rip for raised in trace.exceptions}
    return next((cpu for cpu in cpus if cpu.rip in rips), None)


def _complete(trace: Trace, memory: TableReader | None, given: GivenState) -> Trace:
    """Exceptions for a source that has none: those that were given, or that registers and memory lead to."""
    here = situation(trace.cpu, None, memory, given)
    said = given_exception(given, here)
    first = said or first_exception(here, trace.code)
    if first is None:
        return trace
    if said is not None and memory is None:
        return replace(trace, exceptions=(said,))
    exceptions, outcome = follow(here, first)
    if trace.outcome != "unknown" or said is not None:
        outcome = trace.outcome
    if said is not None:
        return replace(trace, exceptions=exceptions, outcome=outcome)
    what = "there is no log" if trace.dialect == "registers" else "the log has no exception"
    note = f"{what}: the exceptions are inferred from registers and memory"
    return replace(trace, exceptions=exceptions, outcome=outcome, inferred=True, remarks=(*trace.remarks, note))


# -- putting it together ---------------------------------------------------------------------


def _explain(
    trace: Trace,
    memory: TableReader | None,
    given: GivenState,
    final: CpuState | None,
    addresses: Sequence[int],
    changes: Sequence[str],
    areas: Callable[[], AreaMap | None] | None = None,
    naming: Naming | None = None,
) -> Explanation:
    levels, contradiction = proven_levels(trace)
    rsp = trace.exceptions[0].rsp if trace.exceptions and trace.exceptions[0].cpl != 3 else None
    names = AreaNames(release_known(trace), trace.placement, trace.dialect, rsp, areas)
    story = Story(trace, memory, given, final, names, levels)
    explained = story.explain_all()
    guilty = blamed(explained, trace)
    here = guilty.finding.here if guilty else situation(trace.cpu or final, None, memory, given, levels)
    cause = find_cause(explained, trace, suspicious_state(here, trace) if guilty is None else None)
    if guilty is not None:
        cause = replace(cause, legal=_legal(guilty))
    return Explanation(
        source=trace.source,
        dialect=trace.dialect,
        mode=PAGING_NAMES[here.state.paging] if here.known_mode else None,
        outcome=trace.outcome,
        exceptions=explained,
        cause=cause,
        unknown=(*left_open(here, explained, guilty, trace), *contradiction),
        remarks=(*trace.remarks, *story.remarks(), *_why_levels(here, levels), *_names(naming, trace, guilty)),
        headline=headline(cause, guilty, trace),
        guilty=guilty,
        places=tuple(describe(here, va, names) for va in addresses),
        what_if=tuple(ask(change, guilty.finding) for change in changes) if guilty else (),
        symbols_known_from=naming.known_from if naming is not None else None,
        frames=frames_of(trace, naming),
    )


def _names(naming: Naming | None, trace: Trace, guilty: ExplainedException | None) -> tuple[str, ...]:
    """What the symbols say, with the name of the address that was refused."""
    if naming is None:
        return ()
    va = guilty.address if guilty is not None else None
    name = naming.name_at(va)
    named = (f"{hex64(va)} is {name}",) if va is not None and name is not None else ()
    return (*named, *naming.remarks(trace))


def _why_levels(here: Situation, levels: Levels | None) -> tuple[str, ...]:
    """What the number of levels follows from, where no CR4 says it."""
    if levels is None or here.registers.cr4 is not None:
        return ()
    return (f"{levels.number} levels: {'; '.join(levels.why)}",)


def _legal(explained: ExplainedException) -> tuple[str, ...]:
    if explained.finding.advice:
        return explained.finding.advice
    link = missing_link(explained.finding)
    changes = legal_changes(explained.finding)
    if link is None:
        return changes
    return (link, *(change for change in changes if "every level" not in change))
