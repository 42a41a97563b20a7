from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fivefold.arch import (
    LA48,
    LA57,
    AddressSpace,
    Cause,
    ControlState,
    Cpu,
    Entry,
    Level,
    Mapped,
    Rights,
    Translation,
    Unmapped,
    Vendor,
    slot_of,
    translate,
    walk,
)
from fivefold.errors import MemoryReadError
from fivefold.memory import Ram
from fivefold.units import PhysAddr, VirtAddr, hex64

MODES = {"la48": (LA48, PhysAddr(0x2000)), "la57": (LA57, PhysAddr(0x1000))}
CPU = Cpu(phys_bits=42)
CPUS = {
    "": (CPU, True),
    "44": (replace(CPU, phys_bits=44), True),
    "nxe=0": (CPU, False),
    "nx=0": (replace(CPU, nx=False), True),
    "gib=0": (replace(CPU, gib_pages=False), True),
    "amd": (replace(CPU, vendor=Vendor.AMD), True),
}


def space_of(tree: Ram, mode: str, cpu: str = "") -> AddressSpace:
    paging, root = MODES[mode]
    return AddressSpace(tree, root, paging, *CPUS[cpu])


def outcome(space: AddressSpace, va: VirtAddr) -> str:
    try:
        found = translate(space, va)
    except MemoryReadError as error:
        return f"unreadable {hex64(error.pa & ~0xFFF)}"
    if isinstance(found, Mapped):
        return f"mapped {found.pa:#x} {found.page.name} {found.rights}"
    level = found.steps[-1].entry.level.name if found.steps else "-"
    return f"{found.cause.name} {level} {hex64(found.hole.start)} {hex64(found.hole.stop - 1)}"


def test_walk(tree: Ram, walk_vector: list[str]) -> None:
    mode, address, cpu, want = walk_vector

    assert outcome(space_of(tree, mode, cpu), VirtAddr(int(address, 16))) == want


def test_steps_are_what_the_cpu_reads(tree: Ram) -> None:
    steps = list(walk(space_of(tree, "la57"), VirtAddr(0xFF11_0000_0000_2ABC)))

    assert [str(step) for step in steps] == [
        "PML5 0x0000000000001888  0x0000000000002007  rwxu",
        "PML4 0x0000000000002000  0x0000000000003007  rwxu",
        "PDPT 0x0000000000003000  0x0000000000004007  rwxu",
        "PD   0x0000000000004000  0x0000000000005005  r-xu",
        "PT   0x0000000000005010  0x000000000000b087  r-xu",
    ]


def test_results_on_one_line(tree: Ram) -> None:
    space = space_of(tree, "la57")
    texts = [str(translate(space, VirtAddr(va))) for va in (0x602ABC, 0x3000, 0xFE11_0000_0000_0000)]

    assert texts == [
        "0x0000000000602abc -> 0x000000000000babc 4K page rwxu",
        "0x0000000000003000: entry not present at PT, nothing in 0x0000000000003000-0x0000000000003fff",
        "0xfe11000000000000: non-canonical address, nothing in 0x0100000000000000-0xfeffffffffffffff",
    ]


def test_an_unreadable_table_is_not_an_absent_one(tree: Ram) -> None:
    with pytest.raises(MemoryReadError, match=r"^tree has no memory at 0x0000000090000008 \(\+8 bytes\)$"):
        translate(space_of(tree, "la57"), VirtAddr(0x0004_0080_0000_0000))


def test_a_space_from_registers(tree: Ram) -> None:
    cpu = Cpu(phys_bits=42)
    state = ControlState.long(LA57, 0x1000 | 0x18 | 1 << 61)
    space = AddressSpace.from_state(tree, state, cpu)

    assert (space.root, space.mode, space.nxe) == (0x1000, LA57, True)
    assert AddressSpace.from_state(tree, replace(state, efer=0x500), cpu).nxe is False
    with pytest.raises(ValueError, match=r"^no paging \(CR0.PG=0\); expected 4-level or 5-level paging$"):
        AddressSpace.from_state(tree, ControlState.reset(), cpu)


def test_slot_of() -> None:
    assert slot_of(0x7000, Level.PML5, 0xFF11_0000_0000_0000) == 0x7888


def test_rights_spell_themselves() -> None:
    assert str(Rights()) == "rwxu"
    assert str(Rights().through(Entry(1 << 63 | 1, Level.PT))) == "r---"


def same_path(one: Translation, other: Translation, shared: int) -> bool:
    """Whether two translations agree on all but their first steps and what follows from them."""
    if isinstance(one, Unmapped) and isinstance(other, Unmapped):
        return one.cause is other.cause and one.steps[-shared:] == other.steps[-shared:]
    if isinstance(one, Mapped) and isinstance(other, Mapped):
        return (one.pa, one.page, one.leaf) == (other.pa, other.page, other.leaf)
    return False


SLOW_DATA = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


@SLOW_DATA
@given(st.data())
def test_a_tree_hung_below_a_pml5_is_the_same_tree(
    spaces: st.SearchStrategy[AddressSpace], places: st.SearchStrategy[VirtAddr], data: st.DataObject
) -> None:
    """Below 2**48 through PML5[0], and in the upper half through PML5[511]: as with four levels."""
    four = replace(data.draw(spaces), mode=LA48)
    va = LA48.sign_extend(data.draw(places))
    upper = Ram.of_size(0x1000, start=0x10000)
    slot = 511 if va >> 63 else 0
    upper.write(PhysAddr(0x10000 + 8 * slot), (int(four.root) | 7).to_bytes(8, "little"))

    class Both:
        def read(self, pa: PhysAddr, size: int, /) -> bytes:
            return (upper if pa >> 12 == 0x10 else four.memory).read(pa, size)

    five = AddressSpace(Both(), PhysAddr(0x10000), LA57, four.cpu, four.nxe)
    try:
        want = translate(four, va)
    except MemoryReadError as error:
        with pytest.raises(MemoryReadError) as again:
            translate(five, va)
        assert again.value.pa == error.pa
        return
    got = translate(five, va)

    assert same_path(want, got, len(want.steps))
    assert len(got.steps) == len(want.steps) + 1


@SLOW_DATA
@given(st.data())
def test_a_hole_is_sound_at_both_ends_and_no_wider_than_its_entry(
    spaces: st.SearchStrategy[AddressSpace], places: st.SearchStrategy[VirtAddr], data: st.DataObject
) -> None:
    space, va = data.draw(spaces), data.draw(places)
    try:
        found = translate(space, va)
    except MemoryReadError:
        return
    if not isinstance(found, Unmapped):
        return
    assert va in found.hole
    for end in (found.hole[0], found.hole[-1]):
        again = translate(space, VirtAddr(end))

        assert isinstance(again, Unmapped)
        assert (again.cause, again.hole, again.steps) == (found.cause, found.hole, found.steps)
    if found.cause is Cause.NON_CANONICAL:
        assert space.mode.is_canonical(found.hole.start - 1)
        assert space.mode.is_canonical(found.hole.stop)
    else:
        assert found.hole.stop - found.hole.start == found.steps[-1].entry.level.span


@SLOW_DATA
@given(st.data())
def test_rights_only_narrow(
    spaces: st.SearchStrategy[AddressSpace], places: st.SearchStrategy[VirtAddr], data: st.DataObject
) -> None:
    space, va = data.draw(spaces), data.draw(places)
    rights = Rights()
    try:
        for step in walk(space, va):
            assert all(before or not after for before, after in zip(rights, step.rights, strict=True))
            rights = step.rights
    except MemoryReadError:
        return
