"""What a source is: everything that is known of it, each fact with how it is known."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from fivefold.arch import MAX_PHYS_BITS, PagingMode
from fivefold.errors import NotKnownError
from fivefold.memory import CpuState, Source
from fivefold.notebook import html_table
from fivefold.survey.guest.bases import KernelBases
from fivefold.survey.guest.evidence import Found
from fivefold.survey.guest.identify import GivenPaging, choose_nxe, choose_phys_bits, choose_root, roots_in_registers
from fivefold.survey.guest.system import release_told
from fivefold.survey.guest.vmcoreinfo import claims, kernel_notes
from fivefold.survey.scan.scan_result import RegionKind
from fivefold.survey.space import Space
from fivefold.units import hex64

SCHEMA: Final = "fivefold.info/1"
_NO_SPACE: Final = "no address space to look at; the mode says why"
_REGISTERS: Final = ("cr0", "cr2", "cr3", "cr4", "efer", "rip")


@dataclass(frozen=True, slots=True)
class About:
    """A source and, unless it was *refused* for that reason, its address space; *given* is what was said of it."""

    source: Source
    space: Space | None
    refused: str | None = None
    given: GivenPaging = field(default_factory=GivenPaging)

    def facts(self) -> dict[str, Found[Any]]:
        """What a source may leave unsaid, by name: None with the reason where it does."""
        if self.space is None:
            return self._without_space()
        space = self.space
        return {
            "mode": space.mode,
            "root": space.root,
            "phys_bits": space.phys_bits,
            "c_bit": space.c_bit,
            "wp": space.controls.wp,
            "smep": space.controls.smep,
            "smap": space.controls.smap,
            "nxe": self._nxe(space),
            "system": space.system.name,
            "release": space.release,
            "vmcoreinfo": self._vmcoreinfo(space),
            "kasan": Found(space.bases.kasan, "whether anything is mapped where the shadow of the kernel half begins"),
            "pat_msr": self._pat(),
        }

    def _without_space(self) -> dict[str, Found[Any]]:
        """What is known all the same; the reason for the rest is printed once, with the mode."""
        nothing: Found[Any] = Found(None, _NO_SPACE)
        facts = {
            "mode": Found(None, self.refused or "not asked"),
            "root": nothing,
            "phys_bits": choose_phys_bits(self.given),
            "c_bit": nothing,
            "wp": nothing,
            "smep": nothing,
            "smap": nothing,
            "nxe": nothing,
            "system": nothing,
            "release": release_told(kernel_notes(self.source)),
            "vmcoreinfo": Found(None, kernel_notes(self.source).where),
            "kasan": nothing,
            "pat_msr": self._pat(),
        }
        # Either may be what was refused.
        with suppress(NotKnownError):
            facts["nxe"] = choose_nxe(self.source, self.given)
            facts["root"] = choose_root(self.source, self.given)
        return facts

    def _pat(self) -> Found[int | None]:
        return Found(None, f"{self.source.format} holds no PAT MSR; memory types are shown as PWT, PCD and PAT")

    def _vmcoreinfo(self, space: Space) -> Found[str | None]:
        """Which of its claims the tables confirm, and which they contradict."""
        notes = space.notes
        if not notes.facts:
            return Found(None, notes.where)
        shown = {name: base.value for name, base in space.bases.named().items()} | {"levels": space.levels}
        told = {name: (claim, shown[name]) for name, claim in claims(notes).items() if shown.get(name) is not None}
        right = [name for name, (claim, value) in told.items() if claim == value]
        wrong = [
            f"{name} is {value or 0:#x}, not {claim:#x}" for name, (claim, value) in told.items() if claim != value
        ]
        against = f"the tables contradict it: {', '.join(wrong)}" if wrong else None
        return Found(f"the tables confirm {', '.join(right) or 'nothing of it'}", notes.where, against)

    def _nxe(self, space: Space) -> Found[bool | None]:
        if space.nxe.value is not None:
            return space.nxe
        overview = space.overview
        guarded = int((~overview.executable & (overview.kind == RegionKind.MAPPED)).sum())
        if guarded:
            return Found(True, f"{space.nxe.how}; {guarded} ranges are not executable, so NX bits are in use")
        return Found(None, f"{space.nxe.how}, and no NX bit is in use")

    def _repr_html_(self) -> str:
        facts = self.facts() | (self.space.bases.named() if self.space else {})
        rows = [(name, _cell(fact.value), fact.evidence) for name, fact in facts.items()]
        return html_table(f"{self.source.name}: {self.source.format}", ("what", "value", "known from"), rows)

    def roots(self) -> dict[int, str]:
        """The roots that registers name or the caller gave, with where each is from."""
        found: dict[int, str] = {
            root: f"CR3 of CPU {numbers[0]}" for root, numbers in roots_in_registers(self.source).items()
        }
        if self.space is not None:
            found.setdefault(self.space.root.value, self.space.root.how)
        return found

    def to_json(self) -> dict[str, Any]:
        """The schema ``fivefold.info/1``; numbers of 64 bits as hexadecimal text."""
        facts = self.facts()
        mode, root = facts["mode"], facts["root"]
        bases = (self.space.bases if self.space else KernelBases.unknown(_NO_SPACE)).named()
        return {
            "schema": SCHEMA,
            "source": self.source.name,
            "format": self.source.format,
            "live": self.source.live,
            "torn": self.source.torn,
            "mode": mode.value and mode.value.name,
            "levels": mode.value and int(mode.value.top),
            "mode_known_from": mode.how,
            "mode_contradicted_by": mode.against,
            "root": root.value if root.value is None else hex64(root.value),
            "root_known_from": root.how,
            "cpus": [_cpu_json(cpu) for cpu in self.source.cpus],
            "extents": [{"start": hex64(extent.start), "end": hex64(extent.end)} for extent in self.source.extents],
            "roots": [{"root": hex64(value), "known_from": how} for value, how in self.roots().items()],
            "system": {"value": facts["system"].value, "known_from": facts["system"].how},
            "kernel": {"release": facts["release"].value, "known_from": facts["release"].how},
            "bases": {name: None if base.value is None else hex64(base.value) for name, base in bases.items()},
            "bases_known_from": {name: base.how for name, base in bases.items()},
            "areas_known_from": self.space.areas.how if self.space else _NO_SPACE,
            "vmcoreinfo": {
                "value": facts["vmcoreinfo"].value,
                "known_from": facts["vmcoreinfo"].how,
                "contradicted_by": facts["vmcoreinfo"].against,
            },
            **{
                name: {"value": facts[name].value, "known_from": facts[name].how}
                for name in ("phys_bits", "c_bit", "wp", "smep", "smap", "nxe", "kasan", "pat_msr")
            },
            "notes": list(self.source.notes),
        }


def _cell(value: object) -> object:
    if isinstance(value, PagingMode):
        return f"{value.name}, {int(value.top)} levels"
    if value is None:
        return "not known"
    return hex64(value) if isinstance(value, int) and value > MAX_PHYS_BITS else value


def _cpu_json(cpu: CpuState) -> dict[str, str | None]:
    values = {name: getattr(cpu, name) for name in _REGISTERS}
    known = {name: None if value is None else hex64(value) for name, value in values.items()}
    return {**known, "source": cpu.source}
