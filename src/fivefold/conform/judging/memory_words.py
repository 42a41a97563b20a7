"""The words of data that a case sets or changes, beside its page-table entries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fivefold.arch import Allowed, Mapped, translate
from fivefold.conform.cases.actions import MOV_IMM64, VALUE, address_of
from fivefold.conform.cases.case import Case, in_data
from fivefold.conform.judging.expect import BREAKPOINT, Expected
from fivefold.conform.places import CODE, PATTERN, SCRATCH, pattern
from fivefold.units import VirtAddr

_INTO_RAX: Final = ("read1", "read8", "readbp8", "pop8", "cmpxchg8", "thensmap", "thenac")
_ACCESSED: Final = 1 << 40
"""The accessed bit of a segment descriptor."""


def bytes_met(case: Case, expected: Expected) -> Iterator[tuple[int, int]]:
    """Where each byte of the access lies that the tables map to data, whatever its rights: (number, address)."""
    if expected.space is None:
        return
    for number, va in _starts(case):
        found = translate(expected.space, va)
        if isinstance(found, Mapped):
            size = min(case.what.size - number, 4096 - (va & 0xFFF))
            yield from ((number + i, found.pa + i) for i in range(size) if in_data(found.pa + i, 1))


def _starts(case: Case) -> Iterator[tuple[int, VirtAddr]]:
    """The first byte in each page: its number, and its address."""
    yield 0, VirtAddr(case.va)
    if case.crosses:
        yield 4096 - (case.va & 0xFFF), VirtAddr(case.second_page)


def words_before(case: Case, expected: Expected) -> dict[int, int]:
    """Words of data by address, as they have to be before the access: what it may write, and what it has to find."""
    if not (case.what.writes or case.what.implicit or case.action == "fetch10"):
        return {}
    words: dict[int, int] = {}
    wanted = MOV_IMM64 if case.action == "fetch10" else _descriptor(case) if case.what.implicit else b""
    for number, pa in bytes_met(case, expected):
        word = words.setdefault(pa & ~7, pattern(pa & ~7))
        if number < len(wanted):
            words[pa & ~7] = put_byte(word, pa, wanted[number])
    return words


def _descriptor(case: Case) -> bytes:
    """The data segment that is loaded; its accessed bit is clear where the CPU is to set it. Or a TSS's stack."""
    if case.what.tss:
        return (CODE + SCRATCH).to_bytes(8, "little")
    word = PATTERN & ~_ACCESSED if case.action == "accessed" else PATTERN
    return word.to_bytes(8, "little")


def put_byte(word: int, pa: int, byte: int) -> int:
    """*word* with the byte of physical *pa* replaced."""
    shift = 8 * (pa & 7)
    return word & ~(0xFF << shift) | byte << shift


def words_after(case: Case, expected: Expected, before: dict[int, int]) -> dict[int, int]:
    """The same words after the access, if the CPU does what it must."""
    wrote = isinstance(expected.verdict, Allowed) or (expected.first is not None and case.what.then != "write")
    if not (case.what.writes and wrote):
        return before
    words = dict(before)
    for number, pa in bytes_met(case, expected):
        old = words[pa & ~7] >> 8 * (pa & 7) & 0xFF
        words[pa & ~7] = put_byte(words[pa & ~7], pa, _written(case.action, old, _value(case) >> 8 * number & 0xFF))
    return words


def _value(case: Case) -> int:
    """What the instruction writes."""
    values = {
        "accessed": _ACCESSED,
        "stos8": 0,
        "popm8": 0,
        "bts8": 1,
        "call8": address_of(case.what, case.cpl) + len(case.what.code),
    }
    return values.get(case.action, VALUE)


def _written(action: str, old: int, value: int) -> int:
    if action in ("cmpxchg8", "cmpxchg16"):
        return old
    if action == "not8":
        return old ^ 0xFF
    return old | value if action in ("rmw1", "rmw8", "lock8", "bts8", "accessed") else value


def value_read(case: Case, expected: Expected) -> int | None:
    """What RAX holds after an access that went ahead, where it says what was read."""
    if expected.allowed is not None:
        return expected.value if expected.vector == BREAKPOINT else None
    if case.action not in _INTO_RAX or not isinstance(expected.verdict, Allowed):
        return None
    value = 0
    for number, pa in bytes_met(case, expected):
        value |= (pattern(pa & ~7) >> 8 * (pa & 7) & 0xFF) << 8 * number
    return value
