"""Right or wrong: what a peer lists and answers against what is so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fivefold.survey.scan.scan_result import ScanResult

Spans = list[tuple[int, int]]
"""Ranges with exclusive ends, in order, none touching the next."""


def joined(ranges: Iterable[tuple[int, int]]) -> Spans:
    """Ranges in any order, put together where they touch."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if found and found[-1][1] >= start:
            found[-1] = found[-1][0], max(found[-1][1], end)
        elif start < end:
            found.append((start, end))
    return found


def without(these: Spans, others: Spans) -> Spans:
    """What *these* have and *others* do not."""
    left, at = [], 0
    for start, end in these:
        while at < len(others) and others[at][1] <= start:
            at += 1
        which = at
        while which < len(others) and others[which][0] < end:
            if others[which][0] > start:
                left.append((start, others[which][0]))
            start = max(start, others[which][1])
            which += 1
        if start < end:
            left.append((start, end))
    return left


def total(spans: Spans) -> int:
    """How many bytes they are."""
    return sum(end - start for start, end in spans)


def unsigned(ranges: Iterable[Sequence[int]], va_bits: int) -> Spans:
    """Ranges without the copies of the sign bit, which not all peers make."""
    low = (1 << va_bits) - 1
    return joined((start & low, (end - 1 & low) + 1) for start, end in ranges)


def past_ram(result: ScanResult, ram: list[range], va_bits: int) -> Spans:
    """What is mapped to anything but RAM; the scan broke at physical jumps."""
    start, first = result.start.astype(object), result.phys.astype(object)
    end = first + result.size.astype(object)
    inside: list[tuple[int, int]] = []
    for part in ram:
        low, high = np.maximum(first, part.start), np.minimum(end, part.stop)
        hit = (low < high).astype(bool)
        begin = (start + (low - first))[hit]
        inside += zip(begin, begin + (high - low)[hit], strict=True)
    return without(unsigned(zip(start, start + (end - first), strict=True), va_bits), unsigned(inside, va_bits))


@dataclass(frozen=True)
class Truth:
    """What is so: spans without sign bits, and an answer for each address, None where there is none."""

    judges: str
    ram: Spans
    mapped: Spans
    phys: list[int | None]
    words: list[int | None]
    not_ram: set[int]
    """Those of `phys` that are not in RAM."""


def list_verdict(ranges: Spans, truth: Truth) -> tuple[bool, str]:
    """Whether a list of ranges is right, and how it differs. Leaving out what is not RAM is told, but not wrong."""
    misses, invents = total(without(truth.ram, ranges)), total(without(ranges, truth.mapped))
    left_out = total(without(truth.mapped, ranges)) - misses
    differs = [f"misses {size(misses)}"] * bool(misses) + [f"invents {size(invents)}"] * bool(invents)
    if differs:
        return False, "WRONG: " + ", ".join(differs) + f", of {size(total(truth.ram))}"
    return True, f"right, without {size(left_out)} that is not RAM" if left_out else "right"


def answer_verdict(answers: list[int | None], truth: list[int | None], not_ram: set[int]) -> tuple[bool, str]:
    """Whether all answers are right, and how many are not, in which way.

    Having none for an address that leads past RAM, to one of *not_ram*, is told, but not wrong.
    """
    pairs = list(zip(answers, truth, strict=True))
    mapped = sum(so is not None for so in truth)
    left_out = sum(said is None and so in not_ram for said, so in pairs)
    none = sum(said is None and so is not None for said, so in pairs) - left_out
    other = sum(None not in (said, so) and said != so for said, so in pairs)
    invented = sum(said is not None and so is None for said, so in pairs)
    differs = [
        text
        for count, text in (
            (none, f"{none:,} of {mapped:,} mapped not found"),
            (other, f"{other:,} of {mapped:,} mapped elsewhere"),
            (invented, f"{invented:,} of {len(pairs) - mapped:,} others invented"),
        )
        if count
    ]
    if differs:
        return False, "WRONG: " + ", ".join(differs)
    return True, f"right, without {left_out:,} that are not RAM" if left_out else "right"


def size(count: int) -> str:
    """Bytes in the largest unit that leaves three digits."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024 or unit == "PiB":
            break
        value /= 1024
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"
