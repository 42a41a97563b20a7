"""The encryption bit where nothing says that there is one: a hint from the tables, and from nothing less."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fivefold.arch import LA48, Level
from fivefold.errors import NotKnownError
from fivefold.memory import Ram, Source
from fivefold.survey.guest.cpu.encryption import WithoutBits, choose_c_bit, cleared, cpu_with, suspected_bit
from fivefold.survey.guest.evidence import Found
from fivefold.survey.guest.identify import GivenPaging, choose_root
from fivefold.survey.guest.vmcoreinfo import KERNEL_WINDOW, KernelNotes, is_confirmed
from fivefold.units import MASK64, PhysAddr

ROOT, NEXT = 0x10_1000, 0x10_2000
Sourced = Callable[..., Source]


def root_with(*entries: int) -> Ram:
    """4 MiB from 1 MiB on, with *entries* in the table at its root, which begin at index 3."""
    ram = Ram.of_size(4 << 20, start=0x10_0000, name="toy")
    ram.write(PhysAddr(ROOT + 24), b"".join(entry.to_bytes(8, "little") for entry in entries))
    return ram


@pytest.mark.parametrize("bit", [32, 47, 51])
def test_a_bit_that_all_entries_have_and_no_memory(bit: int) -> None:
    ram = root_with(NEXT | 1 << bit | 0x67, 0, NEXT + 0x1000 | 1 << bit | 1 << 63 | 1)
    assert suspected_bit(ram, ROOT) == bit
    assert suspected_bit(ram, ROOT | 1 << bit) == bit


@pytest.mark.parametrize(
    ("entries", "root"),
    [
        ((), ROOT),
        ((NEXT | 1,), ROOT),
        ((NEXT | 1,), ROOT | 1 << 51),
        ((NEXT | 1 << 31 | 1,), ROOT),
        ((NEXT | 1 << 51,), ROOT),
        ((NEXT | 1 << 51 | 1, NEXT | 1), ROOT),
        ((NEXT | 1 << 51 | 1, NEXT | 1 << 47 | 1), ROOT),
        ((NEXT | 1 << 51 | 1, 1 << 51 | 1), ROOT),
        ((NEXT | 1 << 51 | 1 << 47 | 1,), ROOT),
        ((NEXT | 1 << 51 | 1,), ROOT | 1 << 47),
        ((NEXT | 1 << 51 | 1,), 0x9000),
        ((NEXT | 1 << 51 | 1,), ROOT | 1 << 31),
        ((NEXT | 1 << 52 | 1,), ROOT),
    ],
)
def test_no_such_bit(entries: tuple[int, ...], root: int) -> None:
    assert suspected_bit(root_with(*entries), root) is None


@pytest.mark.parametrize(("bit", "is_cut"), [(31, False), (32, True), (47, True), (51, True)])
def test_which_bits_notes_may_call_encryption(built: Callable[..., Ram], bit: int, is_cut: bool) -> None:
    """Notes are confirmed where their symbol lies at its page once the bit is cut out, and only such a bit is."""
    text, page = KERNEL_WINDOW + 0x100_0000, 0x80_0000 | 1 << bit
    facts = {
        "SYMBOL(_stext)": hex(text),
        "NUMBER(phys_base)": str((page & ~(is_cut << bit)) - 0x100_0000),
        "NUMBER(sme_mask)": str(1 << bit),
        "NUMBER(pgtable_l5_enabled)": "0",
    }
    root = 0x10_0000 - int(facts["NUMBER(phys_base)"]) + KERNEL_WINDOW & MASK64
    ram = built(LA48, [(text, page | 0x163, Level.PD)])
    assert is_confirmed(KernelNotes({**facts, "SYMBOL(init_top_pgt)": hex(root)}, "test"), ram)


def test_the_refusal_names_the_option(sourced: Sourced) -> None:
    ram = root_with(NEXT | 1 << 51 | 1)
    with pytest.raises(NotKnownError, match=r"or --c-bit 51: without bit 51, CR3 and every entry lead to memory$"):
        choose_root(sourced(ram), GivenPaging(cr3=ROOT | 1 << 51))
    assert choose_root(sourced(ram), GivenPaging(cr3=ROOT | 1 << 51, c_bit=51)).value == ROOT


@pytest.mark.parametrize(
    ("mask", "bit"),
    [(0, None), (1 << 31, None), (1 << 32, 32), (1 << 47, 47), (1 << 51, 51), (1 << 52, None), (3 << 47, None)],
)
def test_the_mask_of_vmcoreinfo(mask: int, bit: int | None) -> None:
    """One bit of an address, from 32 on."""
    notes = KernelNotes({"NUMBER(sme_mask)": str(mask)}, "a note")
    assert choose_c_bit(None, notes) == Found(bit, "sme_mask in a note" if bit else f"sme_mask={mask:#x} in a note")
    assert choose_c_bit(51, notes) == Found(51, "given with --c-bit")
    assert choose_c_bit(None, KernelNotes({}, "a note")).value is None


@pytest.mark.parametrize(
    ("c_bit", "phys_bits", "reduction"), [(47, None, 5), (51, None, 1), (47, 48, 1), (51, 48, 0), (47, 47, 0)]
)
def test_addresses_end_below_the_bit(c_bit: int, phys_bits: int | None, reduction: int) -> None:
    found = cpu_with(c_bit, phys_bits)
    assert (found.c_bit, found.phys_bits, found.phys_reduction) == (c_bit, phys_bits or 52, reduction)
    assert (cpu_with(None, phys_bits).c_bit, cpu_with(None, phys_bits).phys_bits) == (None, phys_bits or 52)


@pytest.mark.parametrize("bit", [0, 12, 47, 51, 63])
def test_entries_without_a_bit(bit: int) -> None:
    table = b"\xff" * 4096
    assert cleared(table, 1 << bit) == ((1 << 64) - 1 - (1 << bit)).to_bytes(8, "little") * 512
    ram = Ram.of_size(4096, start=ROOT)
    ram.write(PhysAddr(ROOT), table)
    assert WithoutBits(ram, 1 << bit).read(PhysAddr(ROOT), 4096) == cleared(table, 1 << bit)
