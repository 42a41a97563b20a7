"""The same access once more, with one thing changed: level, kind of access, a control bit, the mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from fivefold.arch import LA48, LA57, RFLAGS_AC, Access, Cr0, Cr4, Efer, Kind
from fivefold.explain.faults.finding import FaultFinding
from fivefold.explain.result import WhatIf
from fivefold.explain.rules.ruling import Granted, Outside, describe_entry, rule_on
from fivefold.explain.rules.situation import Situation
from fivefold.machine.base import vector_name
from fivefold.units import hex64, parse_address

_MODES: Final = {"la48": LA48, "la57": LA57, "4": LA48, "5": LA57}
_BITS: Final = {
    **{f"cr0.{bit.name.lower()}": ("cr0", int(bit)) for bit in (Cr0.WP,) if bit.name},
    **{
        f"cr4.{bit.name.lower()}": ("cr4", int(bit))
        for bit in (Cr4.SMEP, Cr4.SMAP, Cr4.PKE, Cr4.PKS, Cr4.LA57, Cr4.LAM_SUP)
        if bit.name
    },
    "efer.nxe": ("efer", int(Efer.NXE)),
    "rflags.ac": ("rflags", RFLAGS_AC),
}
_WORDS: Final = (
    "read, write, fetch, user, supervisor, mode=la48|la57, cpl=0..3, cr3=N, pkru=N, phys_bits=N, "
    + ", ".join(f"{name}=0|1" for name in _BITS)
)

_Question = tuple[Situation, Access]


def ask(change: str, finding: FaultFinding) -> WhatIf:
    """The verdict on the access of *finding* under *change*, such as ``cr0.wp=0`` or ``user``; several with commas.

    `ValueError` for a change that is none, with the ones there are.
    """
    here, how = finding.here, finding.how or Access(Kind.READ)
    for word in filter(None, change.lower().replace(" ", "").split(",")):
        here, how = _apply(word, here, how)
    if finding.va is None:
        return WhatIf(change, None, "the address of the access is not known")
    return _verdict(change, here, finding.va, how)


def _apply(word: str, here: Situation, how: Access) -> _Question:
    if word in ("read", "write", "fetch"):
        return here, replace(how, kind=Kind(word))
    if word in ("user", "supervisor"):
        return here.with_state(replace(here.state, cpl=3 if word == "user" else 0)), replace(how, implicit=False)
    name, equals, text = word.partition("=")
    if not equals:
        raise ValueError(f"{word!r} is not a change; expected one of {_WORDS}")
    return _set(name, text, here), how


def _set(name: str, text: str, here: Situation) -> Situation:
    state = here.state
    if name in ("mode", "levels"):
        if text not in _MODES:
            raise ValueError(f"{text!r} is not a mode; expected la48 or la57")
        return here.with_levels(_MODES[text])
    value = _number(text, hexadecimal=name in ("cr3", "pkru"))
    if name in _BITS:
        register, bit = _BITS[name]
        if name == "cr4.la57" and value in (0, 1):
            return here.with_levels(LA57 if value else LA48)
        if value not in (0, 1):
            raise ValueError(f"{name}={text}; expected 0 or 1")
        old: dict[str, int] = {name: getattr(state, name) for name in ("cr0", "cr4", "efer", "rflags")}
        old[register] = old[register] | bit if value else old[register] & ~bit
        return here.with_state(replace(state, cr0=old["cr0"], cr4=old["cr4"], efer=old["efer"], rflags=old["rflags"]))
    setters: dict[str, Callable[[], Situation]] = {
        "cpl": lambda: here.with_state(replace(state, cpl=_in(value, range(4), "a privilege level"))),
        "pkru": lambda: replace(here, state=replace(state, pkru=value)),
        "cr3": lambda: replace(here, state=replace(state, cr3=value), registers=replace(here.registers, cr3=value)),
        "phys_bits": lambda: here.with_phys_bits(_in(value, range(32, 53), "a physical width"), "asked for"),
    }
    if name not in setters:
        raise ValueError(f"{name!r} cannot be changed; expected one of {_WORDS}")
    return setters[name]()


def _in(value: int, allowed: range, what: str) -> int:
    if value not in allowed:
        raise ValueError(f"{value} is not {what}; expected {allowed.start} to {allowed.stop - 1}")
    return value


def _number(text: str, *, hexadecimal: bool) -> int:
    """A register in hexadecimal, with or without ``0x``; a bit, a level or a width in decimal."""
    if hexadecimal:
        return parse_address(text)
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a number; expected decimal such as 1 or 46") from error


def _verdict(change: str, here: Situation, va: int, how: Access) -> WhatIf:
    what = f"a {how.kind.value} of {hex64(va)}"
    ruling = rule_on(here, va, how)
    if ruling is None:
        return WhatIf(change, None, f"{what}: not known without memory")
    if isinstance(ruling, Granted):
        return WhatIf(change, True, f"{what} would be allowed", ruling.steps)
    if isinstance(ruling, Outside):
        return WhatIf(change, None, f"{what} would walk to {hex64(ruling.at)}, where there is no memory", ruling.steps)
    where = f" by the {describe_entry(ruling.culprit)}" if ruling.culprit else ""
    fault = f"{vector_name(ruling.vector)}({ruling.code:#x})"
    return WhatIf(change, False, f"{what} would be refused, {ruling.rule}{where}: {fault}", ruling.steps)
