"""Rights as a CPU grants them: the letters against `arch.access`, which decides single accesses by the manual."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fivefold.arch import (
    FETCH,
    LA48,
    LA57,
    READ,
    WRITE,
    Allowed,
    ControlState,
    Rights,
    access,
)
from fivefold.memory import CpuState, Source, open_source
from fivefold.report.text.walk import privileges, walk_json
from fivefold.survey.audit.audit import audit
from fivefold.survey.diff.diff import diff
from fivefold.survey.guest.cpu.controls import Controls, parse_as_if
from fivefold.survey.guest.evidence import Found
from fivefold.survey.guest.identify import GivenPaging
from fivefold.survey.scan.regions import spell
from fivefold.survey.space import Space
from fivefold.units import PhysAddr, VirtAddr

WP, SMEP, SMAP, NX = 1 << 16, 1 << 20, 1 << 21, 1 << 63
USER_RW, USER_RO, SUPERVISOR_RW, SUPERVISOR_RO = 7, 5, 3, 1
PAGES = [bits | nx for bits in (USER_RW, USER_RO, SUPERVISOR_RW, SUPERVISOR_RO) for nx in (0, NX)]


def registers(cr0: int, cr4: int, mode: Any = LA48) -> CpuState:
    return CpuState(
        "test", cr0=0x8000_0033 | cr0, cr3=0x1000, cr4=0x20 | cr4 | (0x1000 if mode is LA57 else 0), efer=0xD00
    )


@pytest.mark.parametrize("mode", [LA48, LA57])
@pytest.mark.parametrize("cr0", [0, WP])
@pytest.mark.parametrize("cr4", [0, SMEP, SMAP, SMEP | SMAP])
def test_the_letters_are_what_the_cpu_does(build: Callable[..., Any], mode: Any, cr0: int, cr4: int) -> None:
    built = build(mode)
    for number, raw in enumerate(PAGES):
        built.page(0x40_0000 + number * 0x1000, 0x20_0000 + number * 0x1000 | raw)
    cpu = registers(cr0, cr4, mode)
    space = Space(Source(built.space().source.memory, "test", (cpu,)))
    shown = {region.start: region.effective for region in space.regions()}
    for number in range(len(PAGES)):
        va = VirtAddr(0x40_0000 + number * 0x1000)
        path = space.path(va)
        assert path.by_entries is not None
        for ring, privilege in ((3, space.controls.user), (0, space.controls.supervisor)):
            state = ControlState(cpu.cr0, 0x1000, cpu.cr4, cpu.efer, cpl=ring)  # type: ignore[arg-type]
            allowed = tuple(isinstance(access(space.tables, state, va, kind), Allowed) for kind in (READ, WRITE, FETCH))
            assert privilege(path.by_entries) == allowed, (hex(va), ring)
        # The letters: what the least privileged mode may do that reaches the page.
        lowest = space.controls.user if path.by_entries.user else space.controls.supervisor
        granted = path.steps[-1].rights
        assert lowest(path.by_entries) == (True, granted.write, granted.execute)
        (region,) = (effective for start, effective in shown.items() if start <= va < start + 0x1000)
        assert region == granted


@pytest.mark.parametrize("wp", [0, WP])
def test_rights_of_every_leaf_of_a_capture(look: Callable[..., Space], wp: int) -> None:
    """300 addresses of a Linux, with WP set and clear, all three kinds of access at both privileges."""
    seen = look("debian-no5lvl-kaslr")
    cpu = seen.source.cpus[0]
    changed = CpuState("test", cr0=cpu.cr0 & ~WP | wp, cr3=cpu.cr3, cr4=cpu.cr4, efer=0xD01)  # type: ignore[operator]
    space = Space(Source(seen.source.memory, "test", (changed,)))
    regions = [region for region in space.regions(repeat_above=0) if region.page]
    for region in random.Random(wp).sample(regions, min(150, len(regions))):
        va = VirtAddr(region.start)
        rights = space.path(va).by_entries
        assert rights is not None
        assert region.effective == space.controls.granted(rights) == space.path(va).steps[-1].rights
        for ring, privilege in ((3, space.controls.user), (0, space.controls.supervisor)):
            state = ControlState(changed.cr0, changed.cr3, changed.cr4, 0xD01, cpl=ring)  # type: ignore[arg-type]
            kinds = (READ, WRITE, FETCH)
            assert privilege(rights) == tuple(
                isinstance(access(space.tables, state, va, kind), Allowed) for kind in kinds
            )


def test_memtest_writes_what_its_entries_protect(others: Path) -> None:
    with open_source(str(others / "memtest-ia32-wp0.elf.xz")) as source:
        space = Space(source)
        path = space.path(0x10_0000)
        assert [spell(step.rights) for step in path.steps] == ["rwx-", "rwx-", "rwx-"]
        assert path.by_entries == Rights(write=False, user=False, execute=True)
        told = walk_json(space, [path])
        assert told["walks"][0]["effective"] == {"write": True, "user": False, "execute": True}
        assert all(step["so_far"]["write"] for step in told["walks"][0]["steps"])
        assert told["walks"][0]["privileges"]["supervisor"] == {"read": True, "write": True, "execute": True}
        assert told["controls"]["CR0.WP"] == {"value": False, "known_from": "CR0 of CPU 0"}
        assert {region.effective.write for region in space.regions()} == {True}
        failing = {one.rule.name for one in audit(space).findings if one.fails}
        assert {"wx-kernel", "wp-off", "smep-off", "smap-off"} <= failing
        as_if = Space(source, GivenPaging(as_if={"wp": True, "smep": True, "smap": True}))
        assert {region.effective.write for region in as_if.regions()} == {False}
        assert "wx-kernel" not in {one.rule.name for one in audit(as_if).findings}
        # What one side may do and the other may not is a difference, though the tables are the same.
        assert {change.what for change in diff(space, as_if).changes} == {("rights",)}


def test_what_is_not_known_is_told_so(build: Callable[..., Any]) -> None:
    built = build(LA48).page(0x40_0000, 0x20_0000 | USER_RO)
    source = built.space().source
    space = Space(Source(source.memory, "raw image"), GivenPaging(cr3=0x1000, levels=4))
    rights = space.path(0x40_0000).by_entries
    assert rights is not None
    assert space.controls.supervisor(rights) == (None, None, None)
    assert privileges(rights, space.controls) == "user mode r-x, supervisor ??? (SMAP=?, SMEP=?)"
    read_only = Rights(write=False, user=False, execute=False)
    assert privileges(read_only, space.controls) == "user mode ---, supervisor r?- (WP=?)"
    skipped = {result.rule.name: result.skipped for result in audit(space).results if result.skipped}
    assert skipped["wp-off"] == "CR0.WP is not known: raw image holds no CR0; --as-if gives it"
    assert {"smep-off", "smap-off", "nx-off"} <= set(skipped)


def test_nothing_else_changes_with_wp_clear() -> None:
    off = Controls(*(Found(False, "test") for _ in range(4)))
    on = Controls(*(Found(True, "test") for _ in range(4)))
    for write in (False, True):
        for execute in (False, True):
            user = Rights(write=write, user=True, execute=execute)
            assert off.granted(user) == on.granted(user) == user
            supervisor = Rights(write=write, user=False, execute=execute)
            assert off.granted(supervisor) == Rights(write=True, user=False, execute=execute)
            assert on.granted(supervisor) == supervisor


@pytest.mark.parametrize("text", ["", "wp", "wp=2", "foo=1", "wp=1,wp=0", "wp=1,"])
def test_as_if_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"sets no control; expected wp=0\|1"):
        parse_as_if(text)


@pytest.mark.parametrize("bit", [47, 51])
def test_the_encryption_bit_is_no_address(build: Callable[..., Any], bit: int) -> None:
    built = build(LA48).linux()
    plain = built.space()
    expected = [region._replace(area=None) for region in plain.regions()]
    for frame in range(0x1000, 0xC9000, 0x1000):
        words = [int.from_bytes(built.ram.read(PhysAddr(frame + 8 * n), 8), "little") for n in range(512)]
        for number, word in enumerate(words):
            if word & 1:
                built.entry(frame, number, word | 1 << bit)
    cpu = CpuState("test", cr0=0x8000_0033 | WP, cr3=0x1000 | 1 << bit, cr4=0x20)
    memory = built.space().source.memory
    given = GivenPaging(c_bit=bit)
    space = Space(Source(memory, "test", (cpu,)), given)
    assert space.root.value == 0x1000
    assert [region._replace(area=None) for region in space.regions()] == expected
    step = space.path(0xFFFF_FFFF_8100_0000).steps[-1]
    assert step.entry.raw >> bit & 1 and space.tables.reserved(step.entry) == 0
    told = walk_json(space, [space.path(0xFFFF_FFFF_8100_0000)])
    assert "C" in told["walks"][0]["steps"][0]["flags"] and told["walks"][0]["phys"] == "0x0000000001000000"
    # Addresses end below the bit: one above it is reserved.
    built.entry(0x1000, 511, int.from_bytes(built.ram.read(PhysAddr(0x1FF8), 8), "little") | 1 << bit - 1)
    if bit == 51:
        assert space.cpu.width == 51
    noted = Space(Source(memory, "test", (cpu,), vmcoreinfo={"NUMBER(sme_mask)": str(1 << bit)}))
    assert (noted.c_bit.value, noted.c_bit.how) == (bit, "sme_mask in VMCOREINFO")
    assert (
        Space(
            Source(memory, "test", (), vmcoreinfo={"NUMBER(sme_mask)": "0"}), GivenPaging(cr3=0x1000, levels=4)
        ).c_bit.value
        is None
    )
