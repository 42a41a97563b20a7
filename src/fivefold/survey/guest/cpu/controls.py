"""What control registers make of the rights in page tables: CR0.WP, CR4.SMEP, CR4.SMAP and EFER.NXE of one CPU.

Sources: Intel SDM, "Determination of Access Rights"; AMD APM volume 2, "Page-Protection Checks".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from fivefold.arch import Cr0, Cr4, Efer, Rights
from fivefold.memory import CpuState, Source
from fivefold.survey.guest.evidence import Found

WHICH: Final[Mapping[str, tuple[str, int, str]]] = {
    "wp": ("cr0", int(Cr0.WP), "CR0.WP"),
    "smep": ("cr4", int(Cr4.SMEP), "CR4.SMEP"),
    "smap": ("cr4", int(Cr4.SMAP), "CR4.SMAP"),
    "nxe": ("efer", int(Efer.NXE), "EFER.NXE"),
}
"""Each control: the register that has it, its bit, and its name in the manual."""


class Privilege(NamedTuple):
    """What one privilege may do with a page; None where a register that decides it is not known."""

    read: bool | None
    write: bool | None
    execute: bool | None


@dataclass(frozen=True, slots=True)
class Controls:
    """The controls of a CPU, each with how it is known; None where neither the source nor the caller says."""

    wp: Found[bool | None]
    smep: Found[bool | None]
    smap: Found[bool | None]
    nxe: Found[bool | None]

    def named(self) -> dict[str, Found[bool | None]]:
        """By their names in the manual."""
        values = {"wp": self.wp, "smep": self.smep, "smap": self.smap, "nxe": self.nxe}
        return {name: values[key] for key, (_, _, name) in WHICH.items()}

    @property
    def ignores_read_only(self) -> bool:
        """Whether the supervisor writes to its pages whatever the entries say. Where WP is not known they count."""
        return self.wp.value is False

    def granted(self, rights: Rights) -> Rights:
        """What the least privileged mode may do that reaches a page with *rights* by its entries."""
        if self.ignores_read_only and not rights.user:
            return rights._replace(write=True)
        return rights

    def user(self, rights: Rights) -> Privilege:
        """What CPL 3 may do with a page with *rights* by its entries."""
        if not rights.user:
            return Privilege(False, False, False)
        return Privilege(True, rights.write, rights.execute)

    def supervisor(self, rights: Rights) -> Privilege:
        """What CPL 0 to 2 may do with a page with *rights* by its entries, RFLAGS.AC being clear."""
        data = _unless(self.smap.value) if rights.user else True
        allowed = True if rights.write else _unless(self.wp.value)
        write = False if False in (data, allowed) else None if None in (data, allowed) else True
        if not rights.execute:
            return Privilege(data, write, False)
        return Privilege(data, write, _unless(self.smep.value) if rights.user else True)


def _unless(control: bool | None) -> bool | None:
    """What *control* forbids when it is set."""
    return None if control is None else not control


def choose_controls(source: Source, number: int, cpu: CpuState | None, as_if: Mapping[str, bool]) -> Controls:
    """The controls of CPU *number* of *source*, but for those in *as_if*, given by the keys of `WHICH`."""
    found: dict[str, Found[bool | None]] = {}
    for key, (register, bit, _) in WHICH.items():
        value = None if cpu is None else getattr(cpu, register)
        if key in as_if:
            found[key] = Found(as_if[key], "given with --as-if")
        elif cpu is None or value is None:
            found[key] = Found(None, f"{source.format} holds no {register.upper()}")
        else:
            found[key] = Found(bool(value & bit), f"{register.upper()} of CPU {number}")
    return Controls(**found)


def parse_as_if(text: str) -> dict[str, bool]:
    """Read ``wp=1,smep=0``; `ValueError` that says what is wrong.

    >>> parse_as_if("wp=1,smep=0")
    {'wp': True, 'smep': False}
    """
    given: dict[str, bool] = {}
    for item in text.split(","):
        name, equals, value = item.strip().lower().partition("=")
        if name not in WHICH or not equals or value not in ("0", "1") or name in given:
            raise ValueError(f"{item[:40]!r} sets no control; expected {'=0|1, '.join(WHICH)}=0|1, each once")
        given[name] = value == "1"
    return given
