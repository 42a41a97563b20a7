"""Read what the booted kernel left in its table (`kernel/report.py`), through the machine's physical memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from struct import iter_unpack
from typing import Final

from fivefold.boot.image.elf_image import Image
from fivefold.boot.result import Bounds, Check, Skipped
from fivefold.errors import FormatError
from fivefold.kernel import report
from fivefold.memory import PhysReader
from fivefold.units import PhysAddr, hex64

_TEXT_LIMIT: Final = 256


@dataclass(frozen=True)
class GuestReport:
    """The table's words by name, the areas and the checks; empty where the guest did not get that far."""

    words: dict[str, int]
    areas: dict[str, Bounds]
    checks: tuple[Check, ...]
    skipped: tuple[Skipped, ...]
    panic: str

    @property
    def is_done(self) -> bool:
        """Whether the kernel came to the end of its report."""
        return self.words.get("state") == report.STATE_DONE


NO_REPORT: Final = GuestReport({}, {}, (), (), "")
"""Of a guest that did not even begin one."""


def read_report(memory: PhysReader, image: Image, load: int) -> GuestReport:
    """Read the report of *image* loaded at *load*.

    Nothing in it is trusted: `FormatError` if it is not the table, names outside the image are said to be so.
    """
    table = memory.read(image.physical("startup.table", load), report.TABLE_SIZE)
    values = [value for (value,) in iter_unpack("<Q", table[: 8 * len(report.WORDS)])]
    words = dict(zip(report.WORDS, values, strict=True))
    if words["magic"] != report.MAGIC:
        return NO_REPORT
    if words["version"] != report.VERSION:
        raise FormatError(f"the guest's report has version {words['version']}, expected {report.VERSION}")
    names = _Names(memory, image, load)
    areas = {
        names.at(name): Bounds(start, end)
        for name, start, end, _ in _records(table, report.AREAS_OFFSET, words["areas"], report.MAX_AREAS)
    }
    records = list(_records(table, report.CHECKS_OFFSET, words["checks"], report.MAX_CHECKS))
    checks = tuple(
        Check(names.at(name), "guest", bool(ok), "" if ok else f"got {hex64(got)}, expected {hex64(want)}")
        for name, ok, got, want in records
        if ok != report.SKIPPED
    )
    skipped = tuple(Skipped(names.at(name), names.at(why)) for name, ok, why, _ in records if ok == report.SKIPPED)
    panic = names.at(words["panic_text"]) if words["state"] == report.STATE_PANIC else ""
    return GuestReport(words, areas, checks, skipped, panic)


def _records(table: bytes, offset: int, count: int, most: int) -> Iterator[tuple[int, int, int, int]]:
    size = 8 * report.RECORD_WORDS
    return iter_unpack("<4Q", table[offset : offset + size * min(count, most)])


@dataclass(frozen=True)
class _Names:
    memory: PhysReader
    image: Image
    load: int

    def at(self, address: int) -> str:
        """The text at virtual *address* of the image."""
        offset = address - self.image.link_address
        if not 0 <= offset < self.image.size - _TEXT_LIMIT:
            return f"text outside the image at {hex64(address)}"
        data = self.memory.read(PhysAddr(self.load + offset), _TEXT_LIMIT)
        return data.split(b"\0")[0].decode(errors="replace")
