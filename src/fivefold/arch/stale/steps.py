"""What changes tables or drops what is cached of them, as values.

Sources: Intel SDM volume 3, "Caching Translation Information", "Invalidation of TLBs and Paging-Structure Caches";
AMD APM volume 3, "INVLPGB", "INVPCID".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


@dataclass(frozen=True, slots=True)
class EntryStore:
    """An entry is written: *value* at physical *at*."""

    at: int
    value: int


@dataclass(frozen=True, slots=True)
class TranslationUse:
    """An access to *va* that may fill the caches; one to any other address may be made by speculation at any time."""

    va: int


@dataclass(frozen=True, slots=True)
class Invlpg:
    """INVLPG: drops *va*'s page in the current PCID, global or not, and every paging-structure entry of the PCID."""

    va: int


@dataclass(frozen=True, slots=True)
class LoadCr3:
    """MOV to CR3. *keep* is bit 63 with PCIDE=1: nothing is dropped. *pcid* is the new one."""

    root: int
    pcid: int = 0
    keep: bool = False


@dataclass(frozen=True, slots=True)
class TogglePge:
    """A change of CR4.PGE: drops everything, of every PCID, global translations too."""


class InvpcidType(IntEnum):
    """The four kinds of INVPCID."""

    ADDRESS = 0
    SINGLE = 1
    ALL_GLOBAL = 2
    ALL = 3


@dataclass(frozen=True, slots=True)
class Invpcid:
    """INVPCID of one kind. ADDRESS and SINGLE leave global translations, ALL too."""

    kind: InvpcidType
    pcid: int = 0
    va: int = 0


@dataclass(frozen=True, slots=True)
class Invlpgb:
    """AMD's INVLPGB, after TLBSYNC: *va* in *pcid*, or all of it; on every CPU. *globals_too* drops global ones."""

    va: int | None = None
    pcid: int | None = None
    globals_too: bool = False


StaleStep = EntryStore | TranslationUse | Invlpg | LoadCr3 | TogglePge | Invpcid | Invlpgb
