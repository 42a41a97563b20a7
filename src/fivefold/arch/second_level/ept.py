"""Intel's extended page tables (EPT): entries, rights, misconfigurations, and the one loop that walks.

::

    63 62   57 56 53 52 51              12 11 10 9 8 7 6 5  3 2 1 0
    |VE|  ..  | ... |  frame             |ig|XU|D|A|PS|IP|type|X|W|R|

An entry is present if any of R, W and X is set (XU too with mode-based execute control).
Source: Intel SDM volume 3, "The Extended Page Table Mechanism (EPT)".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from fivefold.arch.cpu import Cpu
from fivefold.arch.entry import FRAME_BITS, MemoryType
from fivefold.arch.modes import Level
from fivefold.arch.walk import TableReader
from fivefold.units import PhysAddr, hex64

READ, WRITE, EXECUTE, USER_EXECUTE = 1 << 0, 1 << 1, 1 << 2, 1 << 10
LARGE, ACCESSED, DIRTY, IGNORE_PAT = 1 << 7, 1 << 8, 1 << 9, 1 << 6
SUPPRESS_VE: Final = 1 << 63
_TYPES: Final = frozenset((0, 1, 4, 5, 6))


@dataclass(frozen=True, slots=True)
class Eptp:
    """An EPT pointer: where the root lies, how many levels, and what it enables."""

    raw: int

    @property
    def root(self) -> PhysAddr:
        """The address of the top table."""
        return PhysAddr(self.raw & FRAME_BITS)

    @property
    def levels(self) -> int:
        """Levels of the walk: bits 5 to 3, plus 1."""
        return (self.raw >> 3 & 7) + 1

    @property
    def accessed_dirty(self) -> bool:
        """Bit 6: the CPU sets A and D, and a guest's own walks count as writes."""
        return bool(self.raw & 1 << 6)

    def problem(self, cpu: Cpu) -> str | None:
        """Why VM entry would refuse this pointer, or None."""
        if self.raw & 7 not in (0, 6):
            return f"memory type {self.raw & 7}, expected 0 (UC) or 6 (WB)"
        if self.levels not in (4, 5):
            return f"a walk of {self.levels} levels, expected 4 or 5"
        reserved = self.raw & (0xF80 | FRAME_BITS & ~((1 << cpu.width) - 1) | 0xFFF << 52)
        return f"reserved bits {hex64(reserved)}" if reserved else None


class EptStep(NamedTuple):
    """One entry that was read, and where it lies."""

    at: PhysAddr
    raw: int
    level: Level


class EptCause(Enum):
    """How an EPT walk ends."""

    MAPPED = "mapped"
    VIOLATION = "EPT violation"
    MISCONFIGURATION = "EPT misconfiguration"


@dataclass(frozen=True, slots=True)
class EptResult:
    """The translation of *gpa*, or why there is none. *rights* are READ, WRITE, EXECUTE and USER_EXECUTE over the path.

    *qualification* is the exit qualification of a violation, bits 0 to 6.
    """

    gpa: int
    cause: EptCause
    steps: tuple[EptStep, ...]
    hpa: PhysAddr | None = None
    rights: int = 0
    reason: str = ""
    qualification: int = 0

    @property
    def memory_type(self) -> MemoryType | None:
        """The leaf's memory type."""
        return MemoryType(self.steps[-1].raw >> 3 & 7) if self.hpa is not None else None


def misconfigured(raw: int, level: Level, cpu: Cpu, execute_only: bool = True, mode_based: bool = False) -> str | None:
    """Why a present entry is misconfigured, or None. *execute_only*: the CPU supports R=0 with X=1."""
    executes = raw & (EXECUTE | (USER_EXECUTE if mode_based else 0))
    if raw & WRITE and not raw & READ:
        return "writable but not readable"
    if executes and not raw & READ and not execute_only:
        return "execute-only, which the CPU does not support"
    if bits := raw & FRAME_BITS & ~((1 << cpu.width) - 1):
        return f"reserved address bits {hex64(bits)}"
    if level > Level.PDPT and raw & 0xF8:
        return f"reserved bits {hex64(raw & 0xF8)} at {level.name}"
    leaf = level is Level.PT or bool(raw & LARGE)
    if not leaf:
        return f"reserved bits {hex64(raw & 0x78)} in an entry that leads to a table" if raw & 0x78 else None
    if level > Level.PT and (bits := raw & FRAME_BITS & (level.span - 1)):
        return f"reserved bits {hex64(bits)} below the page's alignment"
    if raw >> 3 & 7 not in _TYPES:
        return f"memory type {raw >> 3 & 7}, which is reserved"
    return None


def ept_walk(
    memory: TableReader,
    eptp: Eptp,
    gpa: int,
    access: int = READ,
    cpu: Cpu | None = None,
    execute_only: bool = True,
    mode_based: bool = False,
) -> EptResult:
    """Translate *gpa* for *access*, a mask of READ, WRITE, EXECUTE and USER_EXECUTE.

    USER_EXECUTE asks for a fetch from a user page under mode-based execute control; without *mode_based* it is
    EXECUTE. `MemoryReadError` where a table cannot be read; `ValueError` for a pointer that VM entry refuses.
    """
    cpu = cpu or Cpu()
    if problem := eptp.problem(cpu):
        raise ValueError(f"EPTP {hex64(eptp.raw)}: {problem}")
    if access & USER_EXECUTE and not mode_based:
        access = access & ~USER_EXECUTE | EXECUTE
    present = READ | WRITE | EXECUTE | (USER_EXECUTE if mode_based else 0)
    table, rights, steps = int(eptp.root), present, []
    for number in range(eptp.levels, 0, -1):
        level = Level(number)
        at = PhysAddr(table + 8 * level.index(gpa))
        raw = int.from_bytes(memory.read(at, 8), "little")
        steps.append(EptStep(at, raw, level))
        path = tuple(steps)
        if not raw & present:
            return _violation(gpa, path, access, 0, f"{level.name} entry not present")
        if why := misconfigured(raw, level, cpu, execute_only, mode_based):
            return EptResult(gpa, EptCause.MISCONFIGURATION, path, reason=f"{level.name} entry {why}")
        rights &= raw
        if level is Level.PT or (level <= Level.PDPT and raw & LARGE):
            if access & ~rights:
                return _violation(gpa, path, access, rights, "rights do not allow it")
            frame = raw & cpu.frame_mask(level.span)
            return EptResult(gpa, EptCause.MAPPED, path, PhysAddr(frame | gpa & (level.span - 1)), rights)
        table = raw & cpu.frame_mask(4096)
    raise AssertionError("a walk ends at its last level")


def _violation(gpa: int, steps: tuple[EptStep, ...], access: int, rights: int, reason: str) -> EptResult:
    """Bits 0 to 2 are the access, 3 to 5 the rights that there are, 6 those of user-mode execution."""
    asked = access & 7 | (4 if access & USER_EXECUTE else 0)
    allowed = (rights & 7) << 3 | (1 << 6 if rights & USER_EXECUTE else 0)
    return EptResult(gpa, EptCause.VIOLATION, steps, None, rights, reason, asked | allowed)
