"""The questions of the public interface: each takes what `open_space` returns, or tables alone.

`fivefold.arch` answers the same questions about an `AddressSpace` and knows nothing of guests. Here
one function serves both, and says in plain words what it was given wrongly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, overload

import fivefold.arch as arch
from fivefold import _arguments
from fivefold.arch import ACCESS_HISTORY, READ, Access, AddressSpace, ControlState, PageRun, Step, Translation, Verdict
from fivefold.survey.audit.audit import Audit
from fivefold.survey.audit.audit import audit as audit_of
from fivefold.survey.audit.policy import Policy
from fivefold.survey.guest.decide_access import decide
from fivefold.survey.scan.regions import Region, Regions, leaf_rights
from fivefold.survey.scan.scan_result import RegionKind
from fivefold.survey.space import Space
from fivefold.units import PhysAddr, VirtAddr


def walk(space: Space | AddressSpace, va: int, root: int | None = None) -> Iterator[Step]:
    """Yield each entry that the CPU reads for *va*, from the root down, or from the table at *root*.

    Ends after the leaf, or after the entry that stops the translation. `MemoryReadError` where a table is not in
    memory.
    """
    if root is None and space.__class__ is Space and va.__class__ is int and not va >> 64:
        one = space._one or space.one
        if one is not None:
            return one.steps(va)  # type: ignore[arg-type]
    below = None if root is None else PhysAddr(_arguments.word("root", root))
    return arch.walk(_tables(space), VirtAddr(_arguments.word("va", va)), below)


def translate(space: Space | AddressSpace, va: int) -> Translation:
    """Translate *va*, or say what stops it. `MemoryReadError` where a table is not in memory."""
    if isinstance(space, Space):
        return space.translate(va)
    return arch.translate(_tables(space), VirtAddr(_arguments.word("va", va)))


@overload
def access(space: Space, how: Access, /, *, state: ControlState | None = None, user: bool | None = None) -> Verdict: ...


@overload
def access(
    space: Space, va: int, how: Access = READ, *, state: ControlState | None = None, user: bool | None = None
) -> Verdict: ...


@overload
def access(space: AddressSpace, state: ControlState, va: int, how: Access = READ) -> Verdict: ...


def access(space: Space | AddressSpace, *asked: Any, **given: Any) -> Verdict:
    """Decide one access: `Allowed`, or the `Fault` that it raises.

    Of a guest: ``access(space, Access(Kind.WRITE, va=0x401000))`` or ``access(space, 0x401000, WRITE)``, by the
    registers of the CPU that *space* was opened with. *user* says who makes the access (True: privilege level 3),
    *state* gives all registers instead. `NotKnownError` where the answer turns on a register that the source does
    not hold. Of tables alone: ``access(tables, state, va, how)``, as in `fivefold.arch`.
    """
    _arguments.keywords("access", given, ("state", "user", "va", "how"))
    if isinstance(space, AddressSpace):
        return _access_to_tables(space, *asked, **given)
    _arguments.instance("space", space, Space, AddressSpace)
    _arguments.opened("space", space, Space)
    if asked and isinstance(asked[0], Access):
        return _access_to_guest(space, None, *asked, **given)
    return _access_to_guest(space, *asked, **given)


def _access_to_guest(
    space: Space,
    va: int | None = None,
    how: Access = READ,
    *,
    state: ControlState | None = None,
    user: bool | None = None,
) -> Verdict:
    _arguments.instance("how", how, Access)
    va = how.va if va is None else va
    if va is None:
        raise ValueError("va is None; expected the address in Access(…, va=…), or as the second argument")
    _arguments.instance("state", state, ControlState, type(None))
    _arguments.instance("user", user, bool, type(None))
    return decide(space, _arguments.word("va", va), how, state=state, user=user)


def _access_to_tables(space: AddressSpace, state: ControlState, va: int, how: Access = READ) -> Verdict:
    _arguments.instance("state", state, ControlState)
    _arguments.instance("how", how, Access)
    return arch.access(space, state, VirtAddr(_arguments.word("va", va)), how)


@overload
def regions(
    space: Space,
    window: range | None = None,
    *,
    all_bits: bool = True,
    contiguous: bool = False,
    repeat_above: int | None = None,
) -> Regions: ...


@overload
def regions(
    space: AddressSpace, window: range | None = None, *, contiguous: bool = False, ignore: int = ACCESS_HISTORY
) -> Iterator[Region]: ...


def regions(space: Space | AddressSpace, window: range | None = None, **how: Any) -> Regions | Iterator[Region]:
    """What is mapped, ascending, cut to *window* (its end exclusive): of a guest as `Space.regions` gives it.

    Tables alone are read in plain Python, as by `fivefold.arch.regions`, without names of areas.
    """
    _arguments.instance("window", window, range, type(None))
    known = ("all_bits", "contiguous", "repeat_above") if isinstance(space, Space) else ("contiguous", "ignore")
    _arguments.keywords("regions", how, known)
    if isinstance(space, Space):
        return space.regions(window, **how)
    return _regions_of_tables(_tables(space), window, **how)


def _regions_of_tables(
    space: AddressSpace, window: range | None, *, contiguous: bool = False, ignore: int = ACCESS_HISTORY
) -> Iterator[Region]:
    last: Region | None = None
    for run in arch.regions(space, window, True, ignore):
        region = _region(run)
        more = last is not None and not contiguous and _continues(last, region)
        if last is not None and more:
            last = last._replace(end=region.end, phys=_phys_of_both(last, region))
            continue
        if last is not None:
            yield last
        last = region
    if last is not None:
        yield last


def _region(run: PageRun) -> Region:
    kind = RegionKind[run.content.name]
    return Region(run.start, run.end, kind, run.level, leaf_rights(run.flags), run.rights, run.flags, run.phys)


def _continues(one: Region, two: Region) -> bool:
    """Whether *two* differs from *one* in its physical place alone, and follows."""
    return one.end == two.start and one[2:7] == two[2:7] and one.kind is RegionKind.MAPPED


def _phys_of_both(one: Region, two: Region) -> PhysAddr | None:
    return one.phys if one.phys is not None and one.phys + one.size == two.phys else None


def audit(space: Space, policy: Policy | None = None, *, pat: int | None = None) -> Audit:
    """Ask every rule that *policy* does not turn off about *space*; see `load_policy` and `Audit.findings`.

    *pat* is the PAT MSR, where it is known. `TooManyRuns` where the tables unfold into more than can be held.
    """
    _arguments.opened("space", space, Space)
    _arguments.instance("policy", policy, Policy, type(None), expected="a Policy, as of load_policy(), or None")
    return audit_of(space, policy, pat=None if pat is None else _arguments.word("pat", pat))


def _tables(space: Space | AddressSpace) -> AddressSpace:
    _arguments.instance("space", space, Space, AddressSpace)
    if isinstance(space, AddressSpace):
        return space
    _arguments.opened("space", space, Space)
    return space.tables
