from __future__ import annotations

import pytest

from fivefold.arch import PAT_RESET, SOFTWARE_BITS, Cpu, Entry, Flag, Level, MemoryType
from fivefold.arch.cpu import Vendor

TURNED_OFF = ("nx", "gib_pages")


def parse_cpu(text: str) -> tuple[Cpu, bool]:
    """A CPU and NXE, from words such as ``phys_bits=46 amd nxe=0``."""
    words = dict(word.partition("=")[::2] for word in text.split())
    nxe = words.pop("nxe", "1") == "1"
    vendor = Vendor.AMD if words.pop("amd", None) is not None else Vendor.INTEL
    features = {name: words.pop(name) == "1" for name in TURNED_OFF if name in words}
    return Cpu(phys_bits=int(words.pop("phys_bits")), vendor=vendor, **features), nxe


def parse_bits(text: str) -> set[int]:
    bits: set[int] = set()
    for part in text.split():
        low, _, high = part.partition("-")
        bits.update(range(int(low), int(high or low) + 1))
    return bits


def test_reserved_bits_one_by_one(reserved_vector: list[str]) -> None:
    """All 64 bits at every kind of entry: reserved exactly where the table says."""
    _, level, has, cpu_text, wanted = reserved_vector
    cpu, nxe = parse_cpu(cpu_text)
    base = 1 | sum(1 << bit for bit in parse_bits(has))
    # Another bit 7 would make it another kind of entry, unless it is reserved.
    bits = [bit for bit in range(64) if not base >> bit & 1 and (bit != 7 or level[:4] in ("PML5", "PML4"))]
    if "gib_pages=0" in cpu_text:
        bits.append(7)
    found = {bit for bit in bits if cpu.reserved(Entry(base | 1 << bit, Level[level]), nxe)}

    assert cpu.reserved(Entry(base, Level[level]), nxe) == 0
    assert found == parse_bits(wanted) & set(bits)
    for bit in found:
        assert cpu.reserved(Entry(base | 1 << bit, Level[level]), nxe) == 1 << bit


@pytest.mark.parametrize("level", Level)
def test_an_absent_entry_has_no_reserved_bits(level: Level) -> None:
    entry = Entry((1 << 64) - 2, level)

    assert Cpu(phys_bits=32, nx=False).reserved(entry, nxe=False) == 0
    assert (entry.is_present, entry.is_zero) == (False, False)


def test_present_zero_and_leaf_are_three_questions() -> None:
    leaf = {level: Entry(0x81, level).is_leaf for level in Level}

    assert leaf == {Level.PT: True, Level.PD: True, Level.PDPT: True, Level.PML4: False, Level.PML5: False}
    assert Entry(0x01, Level.PT).is_leaf
    assert not Entry(0x01, Level.PD).is_leaf
    assert Entry(0, Level.PD).is_zero
    assert not Entry(0, Level.PD).is_present


@pytest.mark.parametrize(
    ("raw", "level", "frame"),
    [
        (0x8123_4567_89AB_CFFF, Level.PT, 0x0003_4567_89AB_C000),
        (0x8123_4567_89AB_CF7F, Level.PD, 0x0003_4567_89AB_C000),
        (0x8123_4567_89AB_CFFF, Level.PD, 0x0003_4567_89A0_0000),
        (0x8123_4567_89AB_CFFF, Level.PDPT, 0x0003_4567_8000_0000),
        (0x0004_4567_89AB_C067, Level.PML5, 0x0000_4567_89AB_C000),
    ],
)
def test_a_frame_is_as_wide_as_the_cpu_and_aligned_to_its_page(raw: int, level: Level, frame: int) -> None:
    assert Cpu(phys_bits=50).frame(Entry(raw, level)) == frame


@pytest.mark.parametrize(
    ("raw", "level", "index"),
    [
        (0x01, Level.PT, 0),
        (0x09, Level.PT, 1),
        (0x11, Level.PT, 2),
        (0x99, Level.PT, 7),
        (0x1099, Level.PD, 7),
        (0x0099, Level.PD, 3),
        (0x1019, Level.PD, 3),  # a table: bit 12 is address
        (0x1081, Level.PDPT, 4),
        (0x1019, Level.PML5, 3),
    ],
)
def test_pat_index(raw: int, level: Level, index: int) -> None:
    assert Entry(raw, level).pat_index == index


def test_memory_types_after_reset() -> None:
    kinds = [Entry(1 | bits, Level.PT).memory_type() for bits in (0, 8, 0x10, 0x18, 0x80)]

    assert kinds == [MemoryType.WB, MemoryType.WT, MemoryType.UC_MINUS, MemoryType.UC, MemoryType.WB]
    assert Entry(0x1081, Level.PD).memory_type(PAT_RESET & ~(0xFF << 32)) is MemoryType.UC
    with pytest.raises(ValueError, match=r"^PAT entry 1 is 0x3, which is no memory type$"):
        Entry(0x09, Level.PT).memory_type(0x0300)


def test_key_and_software_bits() -> None:
    entry = Entry((1 << 64) - 1, Level.PT)

    assert entry.key == 15
    assert Entry(5 << 59, Level.PT).key == 5
    assert entry.software == SOFTWARE_BITS == 0x07F0_0000_0000_0E00
    assert Entry(Flag.NX | Flag.P, Level.PT).key == 0
