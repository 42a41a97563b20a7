"""What the CPU of a guest answers to an access: by the registers that the source holds, and by no others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any, Final

from fivefold.arch import (
    CR3_LAM_U48,
    CR3_LAM_U57,
    READ,
    RFLAGS_AC,
    Access,
    ControlState,
    Cr4,
    Efer,
    PagingMode,
    Verdict,
    access,
)
from fivefold.errors import NotKnownError
from fivefold.survey.guest.identify import chosen_cpu
from fivefold.units import VirtAddr

if TYPE_CHECKING:
    from fivefold.memory import CpuState
    from fivefold.survey.space import Space

_CS_LONG: Final = 1 << 21
_ALL_KEYS: Final = 0xFFFF_FFFF
"""A PKRU or PKRS that allows nothing."""

_NAMES: Final = {
    "cr3": "LAM in CR3",
    "nxe": "EFER.NXE",
    "rflags": "RFLAGS.AC",
    "cpl": "the privilege level",
    "cs_long": "CS.L",
    "pkru": "PKRU",
    "pkrs": "PKRS",
}


def decide(
    space: Space, va: int, how: Access = READ, *, state: ControlState | None = None, user: bool | None = None
) -> Verdict:
    """Decide *how* at *va* by the registers of the CPU that *space* was opened with, or by *state*.

    *user* says who makes the access: True for privilege level 3, False for 0, None for the CPU's own level. A
    register that the source does not hold is asked both ways: `NotKnownError` where the answer turns on it.
    """
    states = [state] if state is not None else list(_states(space))
    if user is not None:
        states = [replace(one, cpl=3 if user else 0) for one in states]
    answers = {one: _ask(space, one, va, how) for one in dict.fromkeys(states)}
    first, *others = answers.values()
    if all(answer == first for answer in others):
        return first
    raise NotKnownError(
        f"{space.source.name} does not hold {' and '.join(_turning(answers))}, on which the answer turns; give state="
    )


def _ask(space: Space, state: ControlState, va: int, how: Access) -> Verdict:
    nxe = state.nxe if space.nxe.value is None else space.tables.nxe
    return access(replace(space.tables, nxe=nxe), state, VirtAddr(va), how)


def _states(space: Space) -> Iterator[ControlState]:
    """Every state of the registers that agrees with what the source holds."""
    number, cpu = chosen_cpu(space.source, space.given)
    cr4 = space.given.cr4 if space.given.cr4 is not None else cpu.cr4 if cpu else None
    if cpu is None or cpu.cr0 is None or cr4 is None:
        raise NotKnownError(
            f"{space.source.name} ({space.source.format}) does not hold CR0 and CR4 of CPU {number}; give state="
        )
    base = ControlState(cpu.cr0, space.root.value, _cr4_for(space.mode.value, cr4), 0)
    readings = {"cr3": _roots(space, cpu), **_readings(cpu, cr4, space.nxe.value)}
    for values in product(*readings.values()):
        chosen: dict[str, Any] = dict(zip(readings, values, strict=True))
        nxe = int(Efer.NXE) if chosen.pop("nxe") else 0
        yield replace(base, efer=int(Efer.LME | Efer.LMA) | nxe, **chosen)


def _roots(space: Space, cpu: CpuState) -> tuple[int, ...]:
    """CR3 with LAM's bits, which are a process's: those of another root than the CPU's are not known."""
    root, tags = space.root.value, CR3_LAM_U48 | CR3_LAM_U57
    if cpu.cr3 is not None and cpu.cr3 & space.cpu.frame_mask(4096) == root:
        return (root | cpu.cr3 & tags,)
    return (root, root | CR3_LAM_U57, root | CR3_LAM_U48)


def _cr4_for(mode: PagingMode, cr4: int) -> int:
    """CR4 with the levels that the space is read with, which the caller may have forced."""
    return cr4 | int(Cr4.LA57) if int(mode.top) == 5 else cr4 & ~int(Cr4.LA57)


def _readings(cpu: CpuState, cr4: int, nxe: bool | None) -> Mapping[str, tuple[object, ...]]:
    """What each register may hold: one value where the source says it."""
    cs, rflags = cpu.segments.get("cs"), cpu.general.get("rflags")
    cpl = cpu.general.get("cpl", cs.selector & 3 if cs else None)
    pkru = cpu.general.get("pkru")
    return {
        "nxe": (True, False) if nxe is None else (nxe,),
        "rflags": (2, 2 | RFLAGS_AC) if rflags is None else (rflags,),
        "cpl": (0, 3) if cpl is None else (cpl,),
        "cs_long": (True, False) if cs is None else (bool(cs.flags & _CS_LONG),),
        "pkru": (pkru,) if pkru is not None else (0, _ALL_KEYS) if cr4 & Cr4.PKE else (0,),
        "pkrs": (0, _ALL_KEYS) if cr4 & Cr4.PKS else (0,),
    }


def _turning(answers: Mapping[ControlState, Verdict]) -> list[str]:
    """The registers on which the answers turn: those that change it by themselves."""
    found: list[str] = []
    for one, two in product(answers, answers):
        differ = [name for name in _NAMES if _part(one, name) != _part(two, name)]
        if len(differ) == 1 and answers[one] != answers[two]:
            found += differ
    return [_NAMES[name] for name in dict.fromkeys(found)]


def _part(state: ControlState, name: str) -> object:
    return getattr(state, name)
