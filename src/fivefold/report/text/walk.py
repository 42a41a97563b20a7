"""The path of an address, for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from fivefold.arch import AddressSpace, Mapped, Rights, Step, Unmapped, flag_names
from fivefold.report.json_text import controls_json
from fivefold.report.sheet import Writable, paint, width_of
from fivefold.survey.guest.cpu.controls import Controls, Privilege
from fivefold.survey.paths import Path
from fivefold.survey.scan.regions import PAGE_NAMES, leaf_rights, spell
from fivefold.survey.space import Space
from fivefold.units import hex64

SCHEMA: Final = "fivefold.walk/1"
FULL: Final = 116
"""From so many columns on an entry is one line."""


def write_path(path: Path, space: Space, out: Writable) -> None:
    """The address with its area and symbol, a line for each entry read, and what came of it."""
    names = (path.area, space.symbols.at(path.va))
    out.write("  ".join([hex64(path.va), *(name for name in names if name)]) + "\n")
    for step in path.steps:
        out.write(f"  {_step(step, space.tables, out)}\n")
    found = path.end if isinstance(path.end, Mapped) else None
    both = found is not None and found.rights.write and found.rights.execute
    answer, *more = answer_of(path, space.controls).split("\n")
    out.write(f"  {paint(out, answer, 'good' if found and not both else 'bad')}\n")
    for line in more:
        out.write(line + "\n")


def _step(step: Step, tables: AddressSpace, out: Writable) -> str:
    entry = step.entry
    text = f"{entry.level.name:4} entry {entry_index(step):3} at {hex64(step.at)} is {hex64(entry.raw)}"
    if not entry.is_present:
        return f"{text}  {flags_of(step, tables)}"
    wrong = tables.reserved(entry)
    # Two lines where one is not enough: the entry, and what it says.
    gap = "  " if (width_of(out) or FULL) >= FULL else "\n       "
    return (
        f"{text}{gap}{target_of(step)} {hex64(tables.cpu.frame(entry))}  {flags_of(step, tables)}"
        f"  so far {spell(step.rights)}{paint(out, f'  reserved bits {wrong:#x}' if wrong else '', 'bad')}"
    )


def target_of(step: Step) -> str:
    """What a present entry points to: ``table``, or ``2M page``."""
    return f"{PAGE_NAMES[step.entry.level]} page" if step.entry.is_leaf else "table"


def flags_of(step: Step, tables: AddressSpace) -> str:
    """The names of an entry's flags; of one that is not present, whether it is zero."""
    if not step.entry.is_present:
        return "empty" if step.entry.is_zero else "not present"
    return " ".join(_flag_names(step, tables))


def _flag_names(step: Step, tables: AddressSpace) -> list[str]:
    """The names of an entry's flags, ``C`` for the bit that is about encryption."""
    encrypted = step.entry.raw & tables.cpu.encryption_bits
    return flag_names(_flags(step), step.entry.level) + (["C"] if encrypted else [])


def entry_index(step: Step) -> int:
    """Which of the table's 512 entries it is."""
    return (step.at & 0xFFF) // 8


def _flags(step: Step) -> int:
    """The entry's bits that are not address: bit 12 is, but for large pages."""
    large = step.entry.is_leaf and step.entry.level > 1
    return step.entry.raw & ~(0x000F_FFFF_FFFF_E000 | (0 if large else 0x1000))


def answer_of(path: Path, controls: Controls) -> str:
    """What came of a walk, after an arrow; on a second line what each privilege may do with the page."""
    match path.end:
        case Mapped() as found:
            answer = f"-> {hex64(found.pa)}  {PAGE_NAMES[found.page]} page, effective {spell(found.rights)}"
            return f"{answer}\n  {privileges(path.by_entries, controls)}" if path.by_entries else answer
        case Unmapped() as refused:
            hole = f"{hex64(refused.hole.start)}-{hex64(refused.hole.stop)}"
            return f"-> {refused.cause.value}; the same holds for all of {hole}"
        case None:
            return f"-> no answer: the table at {hex64(path.missing or 0)} is not in memory"


def privileges(rights: Rights, controls: Controls) -> str:
    """What user mode and the supervisor may do with a page; a question mark where the register is not known."""
    user, supervisor = controls.user(rights), controls.supervisor(rights)
    why = []
    if rights.user:
        why += [
            f"{name}={'?' if one.value is None else int(one.value)}"
            for name, one in (("SMAP", controls.smap), ("SMEP", controls.smep))
        ]
    elif not rights.write:
        why.append(f"WP={'?' if controls.wp.value is None else int(controls.wp.value)}")
    known = f" ({', '.join(why)})" if why else ""
    return f"user mode {_letters(user)}, supervisor {_letters(supervisor)}{known}"


def _letters(privilege: Privilege) -> str:
    return "".join("?" if may is None else letter if may else "-" for letter, may in zip("rwx", privilege, strict=True))


def walk_json(space: Space, paths: list[Path]) -> dict[str, Any]:
    """The schema ``fivefold.walk/1``."""
    return {
        "schema": SCHEMA,
        "source": space.source.name,
        "root": hex64(space.root.value),
        "root_known_from": space.root.how,
        "levels": space.levels,
        "mode_known_from": space.mode.how,
        "mode_contradicted_by": space.mode.against,
        "controls": controls_json(space.controls),
        "c_bit": {"value": space.c_bit.value, "known_from": space.c_bit.how},
        "symbols_known_from": space.symbols.known_from,
        "walks": [_path_json(path, space) for path in paths],
    }


def _path_json(path: Path, space: Space) -> dict[str, Any]:
    found = path.end if isinstance(path.end, Mapped) else None
    hole = path.end.hole if isinstance(path.end, Unmapped) else None
    return {
        "address": hex64(path.va),
        "mapped": found is not None,
        "phys": hex64(found.pa) if found else None,
        "page": PAGE_NAMES[found.page] if found else None,
        "effective": dict(found.rights._asdict()) if found else None,
        "privileges": _privileges_json(path, space.controls),
        "leaf": spell(leaf_rights(found.leaf.raw)) if found else None,
        "area": path.area,
        "symbol": space.symbols.at(path.va),
        "cause": path.cause,
        "hole": {"start": hex64(hole.start), "end": hex64(hole.stop)} if hole else None,
        "missing_table": None if path.missing is None else hex64(path.missing),
        "steps": list(_steps_json(path, space.tables)),
    }


def _privileges_json(path: Path, controls: Controls) -> dict[str, dict[str, bool | None]] | None:
    """What each privilege may do with the page, RFLAGS.AC being clear; null for what is not known."""
    if path.by_entries is None:
        return None
    both = {"user": controls.user(path.by_entries), "supervisor": controls.supervisor(path.by_entries)}
    return {name: dict(one._asdict()) for name, one in both.items()}


def _steps_json(path: Path, tables: AddressSpace) -> Iterator[dict[str, Any]]:
    for step in path.steps:
        entry = step.entry
        yield {
            "level": int(entry.level),
            "name": entry.level.name,
            "index": entry_index(step),
            "at": hex64(step.at),
            "entry": hex64(entry.raw),
            "present": entry.is_present,
            "page": entry.is_present and entry.is_leaf,
            "to": hex64(tables.cpu.frame(entry)) if entry.is_present else None,
            "flags": _flag_names(step, tables) if entry.is_present else [],
            "reserved_bits": hex64(tables.reserved(entry)),
            "so_far": dict(step.rights._asdict()) if entry.is_present else None,
        }
