"""The audit of every address space in a memory: the kernel half once, the user half of each root."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Final

from fivefold.arch import TABLE_SIZE
from fivefold.errors import FivefoldError
from fivefold.survey.audit.audit import Audit, RuleResult, audit
from fivefold.survey.audit.audit_checks import MAX_HITS
from fivefold.survey.audit.policy import Policy
from fivefold.survey.guest.evidence import Found
from fivefold.survey.guest.identify import MODES
from fivefold.survey.guest.root_labels import OWN_TABLE, TRAMPOLINE
from fivefold.survey.guest.roots import Confidence, Root, find_roots
from fivefold.survey.names.root_owners import root_owners
from fivefold.survey.space import Space
from fivefold.units import GIB, PhysAddr, hex64

NAMED: Final = 8
"""Roots that were left out and are named."""

MAX_COUNTED: Final = GIB
"""Memory that has to be copied to be searched is not searched above this, unless all roots are asked for."""


def audit_all_roots(space: Space, policy: Policy | None = None, *, pat: int | None = None) -> Audit:
    """Audit *space* and what other roots in its memory have of their own, as one.

    A root of another kernel is looked at whole; of those that share the kernel half with one that was looked at, only
    the user half is. Where the kernel's own list of processes can be read, a root that none of them has is a leftover
    or a copy: its tables may be anything by now. It is left out, and said. Raises what `audit` does, and what
    `find_roots` does.
    """
    first = audit(space, policy, pat=pat)
    sure, gone = _in_use(space, find_roots(space.source, None, space.phys_bits.value, space.c_bit.value))
    groups = {root.group for root in sure if space.root.value in (root.root, root.pair)}
    audits = [first]
    for root in sure:
        if space.root.value in (root.root, root.pair):
            continue
        audits.append(audit(_space_of(space, root), policy, pat=pat, user_half_only=root.group in groups))
        groups.add(root.group)
    limits = dict.fromkeys(limit for one in audits for limit in one.limits)
    if gone:
        some = ", ".join(hex64(root.root) for root in gone[:NAMED]) + (", …" if len(gone) > NAMED else "")
        limits[f"{len(gone)} roots that no process has any more were left out (--cr3 asks about one): {some}"] = None
    results = tuple(_joined(results) for results in zip(*(one.results for one in audits), strict=True))
    return Audit(space, first.policy, results, tuple(limits), len(audits), Found(len(audits), "found in memory"))


def _sure(roots: Iterable[Root]) -> list[Root]:
    return [root for root in roots if root.confidence >= Confidence.MEDIUM and not root.is_user_half]


def _in_use(space: Space, found: list[Root]) -> tuple[list[Root], list[Root]]:
    """Those of the sure roots in *found* that something has, and those of a known kernel that nothing has."""
    sure = _sure(found)
    owners = root_owners(space.source, sure, space.symbol_file)
    groups = {root.group for root in sure if owners.of(root)}
    kernels = {_last_table(space, root) for root in found if root.group in groups}
    kept = [
        root
        for root in sure
        if owners.of(root)
        or root.cpus
        or root.root in owners.labels
        or root.label in (OWN_TABLE, TRAMPOLINE)
        or space.root.value in (root.root, root.pair)
        or _last_table(space, root) not in kernels
    ]
    return kept, [root for root in sure if root not in kept]


def _last_table(space: Space, root: Root) -> int:
    """The table behind the last slot, which all roots of one kernel share; user halves share another one."""
    entry = int.from_bytes(space.source.memory.read(PhysAddr(root.root + TABLE_SIZE - 8), 8), "little")
    return entry & space.cpu.frame_mask(TABLE_SIZE)


def _space_of(space: Space, root: Root) -> Space:
    how, mode = Found(root.root, root.label or ""), Found(MODES[root.levels], "the root's own")
    other = Space(space.source, space.given, root=how, mode=mode)
    other.scanner = space.scanner
    return other


def _joined(results: tuple[RuleResult, ...]) -> RuleResult:
    """What came of one rule under all roots."""
    asked = [result for result in results if result.skipped is None]
    if not asked:
        return results[0]
    findings = tuple(finding for result in asked for finding in result.findings)
    cut = len(findings) > MAX_HITS or any(result.cut for result in asked)
    return replace(asked[0], findings=findings[:MAX_HITS], cut=cut)


def with_count(found: Audit) -> Audit:
    """*found*, of one root, with how many there are, where that can be counted without long work."""
    space, memory = found.space, found.space.source.memory
    size = sum(extent.end - extent.start for extent in memory.extents)
    if not memory.zero_copy and (not memory.searchable or size > MAX_COUNTED):
        return replace(found, of=Found(None, "memory was not searched for roots"))
    with suppress(FivefoldError):
        sure = _sure(find_roots(space.source, None, space.phys_bits.value, space.c_bit.value))
        others = [root for root in sure if space.root.value not in (root.root, root.pair)]
        return replace(found, of=Found(len(others) + 1, "found in memory"))
    return replace(found, of=Found(None, "looking for roots failed"))
