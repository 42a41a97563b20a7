"""One situation each: registers, page tables and what was raised, by hand, and all that is told of it.

The situations are in ``tests/data/situations``: a line for the CPU, lines that build its memory, a line for each
exception, and after ``->`` what is told. After a change of words that was meant,
``python tests/explain/faults/test_situations.py`` writes that again; the difference is then to be read, line by line.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from fivefold.arch import LA48, LA57, AddressSpace, Entry, Flag, Frames, Kind, Level, map_page, walk
from fivefold.explain import Explanation, GivenState, RaisedException, Trace, explain
from fivefold.explain.logs.trace import Code, EmulatorReason, PrintedEntry
from fivefold.memory import CpuState, Ram, Segment
from fivefold.units import PhysAddr, VirtAddr

FOLDER: Final = Path(__file__).parents[2] / "data" / "situations"
ROOT: Final = 0x30_0000
BASE: Final = 0x20_0000
CONTROL: Final = ("cr0", "cr2", "cr3", "cr4", "efer")
TABLES: Final = ("gdt", "idt", "tr", "cs")
FLAGS: Final = {"w": Flag.RW, "u": Flag.US, "n": Flag.NX}
USUAL: Final = {"cr0": 0x8001_0011, "cr3": ROOT, "efer": 0xD00}


class Told(NamedTuple):
    """A situation by its file and name: the lines that make it, and those that are told of it."""

    file: str
    name: str
    made: list[str]
    told: str


def situations() -> list[Told]:
    found = []
    for file in sorted(FOLDER.glob("*.txt")):
        for part in file.read_text().split("\n=== ")[1:]:
            head, _, told = part.partition("\n->")
            name, *made = head.split("\n")
            found.append(Told(file.name, name, made, told.strip("\n")))
    return found


def fields(words: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) if "=" in word else (word, "1") for word in words)


def cpu_of(said: dict[str, str]) -> CpuState:
    """Registers; what is usual is left out in the line, and what is not known is ``?``."""
    numbers: dict[str, Any] = {
        **USUAL,
        **{k: None if v == "?" else int(v, 16) for k, v in said.items() if k not in TABLES},
    }
    segments = {}
    for name in TABLES:
        if name in said:
            base, rest = (int(part, 16) for part in said[name].split(":"))
            segments[name] = Segment(base, 0, 0, rest) if name == "cs" else Segment(0, base, rest, 0)
    general = {name: value for name, value in numbers.items() if name not in CONTROL and value is not None}
    return CpuState("test", *(numbers.get(name) for name in CONTROL), general, segments)


class Memory:
    """Memory from `BASE` on, with a root at `ROOT`, as lines build it."""

    def __init__(self, is_five: bool) -> None:
        self.ram = Ram.of_size(2 << 20, BASE)
        self.space = AddressSpace(self.ram, PhysAddr(ROOT), LA57 if is_five else LA48)
        self.frames = Frames(self.ram, PhysAddr(ROOT + 0x1000), 60)

    def map(self, va: str, pa: str, rights: str = "") -> None:
        flags = int(Flag.P) | sum(int(FLAGS[right]) for right in rights)
        map_page(self.ram, self.space, VirtAddr(int(va, 16)), Entry(int(pa, 16) | flags, Level.PT), self.frames)

    def usual(self) -> None:
        """Code, stack, IDT, GDT and TSS of a kernel in good order; all gates lead to one handler."""
        for va, pa in (("81000000", "201000"), ("81004000", "204000"), ("82000000", "202000"), ("83000000", "203000")):
            self.map(f"ffffffff{va}", pa, "w")
        for vector in range(64):
            self.gate(f"{0x202000 + 16 * vector:x}", "ffffffff81000100")
        self.poke("203008", "ffff0000009baf00")
        for offset in (4, *range(0x24, 0x5C, 8)):
            self.poke(f"{0x203800 + offset:x}", "00480081ffffffff")

    def entry(self, va: str, level: str, raw: str) -> None:
        step = next(step for step in walk(self.space, VirtAddr(int(va, 16))) if step.entry.level.name == level)
        self.ram.write(step.at, int(raw, 16).to_bytes(8, "little"))

    def poke(self, pa: str, data: str) -> None:
        self.ram.write(PhysAddr(int(pa, 16)), bytes.fromhex(data))

    def gate(self, pa: str, handler: str, flags: str = "8e00", selector: str = "8") -> None:
        offset, kind = int(handler, 16), int(flags, 16)
        low = offset & 0xFFFF | int(selector, 16) << 16 | kind << 32 | (offset >> 16 & 0xFFFF) << 48
        self.ram.write(PhysAddr(int(pa, 16)), struct.pack("<QQ", low, offset >> 32))


def raised_of(words: list[str], line: int) -> RaisedException:
    """An exception: its vector, and the fields of `RaisedException` that are said."""
    vector, *rest = words
    found: dict[str, Any] = {"vector": int(vector), "line": line}
    for name, value in fields(rest).items():
        match name:
            case "code":
                before, _, after = value.rpartition("/")
                found[name] = Code(bytes.fromhex(before + after), len(before) // 2)
            case "reason":
                rule, _, more = value.partition(":")
                level, _, times = more.partition(":")
                found[name] = EmulatorReason("so it says", rule, Level[level] if level else None, int(times or 1))
            case "entries":
                pairs = (one.split(":") for one in value.split(","))
                found[name] = tuple(PrintedEntry(level, int(raw, 16)) for level, raw in pairs)
            case "kind":
                found[name] = Kind(value)
            case "named_as" | "symbol" | "says":
                found[name] = value.replace("_", " ") if name == "says" else value
            case "during" | "cpl" | "repeats":
                found[name] = int(value)
            case "error":
                found["error_code"] = int(value, 16)
            case "cr2" | "rip" | "rsp" | "last_rsp" | "named" | "shadowed":
                found[name] = int(value, 16)
            case _:
                found[name] = value == "1"
    return RaisedException(**found)


def explained(made: list[str]) -> Explanation:
    trace: dict[str, Any] = {"dialect": "test"}
    given: dict[str, Any] = {}
    cpu, memory, raised = CpuState("test"), None, []
    for number, line in enumerate(made, 1):
        word, *rest = line.split()
        match word:
            case "cpu":
                cpu = cpu_of(fields(rest))
            case "trace":
                trace |= {name: value.replace("_", " ") for name, value in fields(rest).items()}
            case "given":
                given |= {name: int(value, 0) for name, value in fields(rest).items()}
            case "raised":
                raised.append(raised_of(rest, number))
            case "levels":
                memory = memory or Memory(False)
                memory.space = AddressSpace(memory.ram, PhysAddr(ROOT), LA57 if rest == ["5"] else LA48)
            case _:
                memory = memory or Memory(bool((cpu.cr4 or 0) & 0x1000))
                if word != "memory":
                    getattr(memory, word)(*rest)
    told = Trace("test", exceptions=tuple(raised), cpu=cpu, **trace)
    return explain(told, memory.ram if memory else None, given=GivenState(**given))


def report(made: list[str]) -> str:
    """The headline and the cause; then what speaks for it (-), what is legal (+), what is open (?); each exception."""
    found = explained(made)
    cause = found.cause
    lines = [found.headline, f"{cause.rule} {cause.confidence} {_shown(cause.address)} {found.mode} {found.outcome}"]
    lines += [f"- {each}" for each in (*cause.evidence, *found.remarks)]
    lines += [f"+ {each}" for each in cause.legal]
    lines += [f"? {each}" for each in found.unknown if "there is no memory" not in each]
    for one in found.exceptions:
        finding = one.finding
        how = [each for each in ("stack", "implicit") if finding.how and getattr(finding.how, each)]
        said = (
            finding.rule,
            finding.confidence,
            _shown(finding.va),
            one.access,
            *how,
            finding.agrees,
            finding.legitimate,
        )
        level = finding.level.name if finding.level else None
        lines += [f"{one.name} {' '.join(map(str, said))} {level} {len(finding.steps)}: {finding.sentence}"]
        lines += [f"  {each}" for each in finding.remarks if each not in cause.evidence]
        lines += [f"  {one.delivery}"] if one.delivery else []
        if "raised" not in " ".join(made):
            numbers = {name: _shown(getattr(one.raised, name)) for name in ("error_code", "cr2", "rip", "rsp")}
            lines += [f"  {' '.join(map('='.join, numbers.items()))} cpl {one.raised.cpl} {one.raised.software}"]
    return "\n".join(lines)


def _shown(va: int | None) -> str:
    return "-" if va is None else f"{va:016x}"


@pytest.mark.parametrize("case", situations(), ids=lambda case: f"{case.file}-{case.name}")
def test_situation(case: Told) -> None:
    assert report(case.made) == case.told


if __name__ == "__main__":
    for path in sorted(FOLDER.glob("*.txt")):
        head = path.read_text().split("\n=== ")[0]
        of_file = [case for case in situations() if case.file == path.name]
        texts = ("\n".join((f"=== {case.name}", *case.made, "->", report(case.made), "")) for case in of_file)
        path.write_text("\n".join((head, *texts)))
