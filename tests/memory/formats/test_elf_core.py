"""ELF cores, made field by field."""

from __future__ import annotations

import struct

import pytest

from fivefold.errors import FormatError, MemoryReadError
from fivefold.memory import open_source
from fivefold.units import PhysAddr

PAGE = b"\x11" * 4096


def test_memory_is_where_the_segments_say(make, saved) -> None:
    path = saved(make.elf_core([(0x8000, b"\x22" * 4096), (0x1000, PAGE)]))
    with open_source(path) as source:
        assert source.extents == [(0x1000, 0x2000), (0x8000, 0x9000)]
        assert source.memory.read(PhysAddr(0x8FFF), 1) == b"\x22"
        assert source.notes == ("the core holds no notes, so no registers",)
        assert source.format == "ELF core"
        with pytest.raises(MemoryReadError, match=r"guest has no memory at 0x0000000000001fff \(\+2 bytes\)$"):
            source.memory.read(PhysAddr(0x1FFF), 2)


def test_overlap_uses_the_first_segment_and_says_so(make, saved) -> None:
    path = saved(make.elf_core([(0x2000, PAGE), (0x1000, b"\x22" * 0x3000)]))
    with open_source(path) as source:
        assert source.extents == [(0x1000, 0x4000)]
        assert source.memory.read(PhysAddr(0x1FFF), 0x1002) == b"\x22" + PAGE + b"\x22"
        assert source.notes[0] == "segments overlap in 4096 bytes of physical memory; the first one was used"


def test_qemus_core_of_a_guest_before_long_mode(make, saved) -> None:
    with open_source(saved(make.elf_core([(0x1000, PAGE)], machine=3))) as source:
        assert source.extents == [(0x1000, 0x2000)]
        assert any("ELF machine 386: the first CPU is not in long mode" in note for note in source.notes)


def test_count_beyond_16_bits_comes_from_the_first_section(make, saved) -> None:
    with open_source(saved(make.elf_core([(0x1000, PAGE)], extended=True))) as source:
        assert source.extents == [(0x1000, 0x2000)]


def test_memory_part_beyond_the_file_part_is_a_hole(make, saved) -> None:
    core = bytearray(make.elf_core([(0x1000, PAGE)]))
    struct.pack_into("<Q", core, 64 + 56 + 40, 0x5000)
    with open_source(saved(bytes(core))) as source:
        assert source.extents == [(0x1000, 0x2000)]


def test_prstatus_registers(make, saved) -> None:
    status = struct.pack("<112x27Q8x", *range(100, 127))
    notes = make.note(b"CORE", 1, status) + make.note(b"VMCOREINFO", 0, b"OSRELEASE=6.1\nPAGESIZE=4096\n")
    with open_source(saved(make.elf_core([(0x1000, PAGE)], notes))) as source:
        (cpu,) = source.cpus

        assert (cpu.general["r15"], cpu.general["rbx"], cpu.rip, cpu.rsp, cpu.general["gs"]) == (
            100,
            105,
            116,
            119,
            126,
        )
        assert (cpu.cr3, cpu.source) == (None, "PRSTATUS note")
        assert source.vmcoreinfo == {"OSRELEASE": "6.1", "PAGESIZE": "4096"}


def patched(core: bytes, at: int, form: str, value: int) -> bytes:
    changed = bytearray(core)
    struct.pack_into(form, changed, at, value)
    return bytes(changed)


FIRST_LOAD = 64 + 56

# offset, form, value, message
FORGED = [
    (4, "<B", 1, "is a core of a 32-bit system (ELF class 1), whose tables are those of 32-bit or PAE paging"),
    (4, "<B", 3, "ELF class 3, data 1; expected 64-bit little-endian (2, 1)"),
    (5, "<B", 2, "ELF class 2, data 2; expected 64-bit little-endian (2, 1)"),
    (16, "<H", 2, "the ELF file is an executable, not a core; expected type 4, as of `dump-guest-memory`"),
    (16, "<H", 99, "the ELF file is of type 99, not a core; expected type 4, as of `dump-guest-memory`"),
    (18, "<H", 183, "ELF for machine 183; expected x86-64 (62) or 386 (3)"),
    (54, "<H", 32, "program headers of 32 bytes, expected 56"),
    (
        32,
        "<Q",
        (1 << 64) - 1,
        "ends at 0x10b0; expected 112 bytes at 0xffffffffffffffff: truncated or forged; copy or take it again",
    ),
    (56, "<H", 0xFFFE, "ends at 0x10b0; expected 3669904 bytes at 0x40: truncated or forged; copy or take it again"),
    (
        FIRST_LOAD + 8,
        "<Q",
        0xFFFF_FFFF_FFFF_F000,
        "segment 1 needs bytes up to 0x10000000000000000, the file ends at 0x10b0",
    ),
    (
        FIRST_LOAD + 32,
        "<Q",
        4097,
        "segment 1 needs bytes up to 0x10b1, the file ends at 0x10b0: truncated or forged; copy or take it again",
    ),
    (FIRST_LOAD + 24, "<Q", (1 << 64) - 4095, "segment 1 passes the end of physical memory at 0xfffffffffffff001"),
    (64 + 32, "<Q", 1 << 62, "4611686018427387904 bytes of notes, at most 67108864 are read"),
]


@pytest.mark.parametrize(("at", "form", "value", "message"), FORGED)
def test_forged_headers(make, saved, at: int, form: str, value: int, message: str) -> None:
    path = saved(patched(make.elf_core([(0x1000, PAGE)]), at, form, value))
    with pytest.raises(FormatError) as error:
        open_source(path)
    assert message in str(error.value)
    assert str(error.value).startswith(path)
    assert "\n" not in str(error.value)


def test_forged_extended_count(make, saved) -> None:
    core = patched(make.elf_core([(0x1000, PAGE)], extended=True), 64 + 44, "<I", 0xFFFF_FFFF)
    with pytest.raises(FormatError, match=r"4294967295 program headers, at most 262144 are read$"):
        open_source(saved(core))


def test_extended_count_without_a_section(make, saved) -> None:
    core = patched(make.elf_core([(0x1000, PAGE)]), 56, "<H", 0xFFFF)
    core = patched(core, 40, "<Q", 1 << 40)
    with pytest.raises(
        FormatError, match=r"expected 64 bytes at 0x10000000000: truncated or forged; copy or take it again$"
    ):
        open_source(saved(core))


def test_extended_count_without_a_section_table(make, saved) -> None:
    """The ELF header itself is no section header."""
    core = patched(make.elf_core([(0x1000, PAGE)]), 56, "<H", 0xFFFF)
    with pytest.raises(FormatError, match=r"the number of program headers is in a section header, and there is none$"):
        open_source(saved(patched(core, 40, "<Q", 0)))


@pytest.mark.parametrize("keep", [5, 63, 64 + 56, 0x1000])
def test_truncated(make, saved, keep: int) -> None:
    with pytest.raises(FormatError, match=r"truncated or forged; copy or take it again$"):
        open_source(saved(make.elf_core([(0x1000, PAGE)])[:keep]))


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        (
            struct.pack("<III", 5, 0xFFFF_FFFF, 1) + b"CORE\0\0\0\0",
            "note at 0x0 claims 5 + 4294967295 bytes, 8 are left",
        ),
        (struct.pack("<III", 5, 8, 1) + b"CORE\0\0\0\0" + bytes(8), "PRSTATUS note has 8 bytes, expected 336"),
        (
            struct.pack("<III", 5, 8, 0) + b"QEMU\0\0\0\0" + bytes(8),
            "QEMU's CPU note has 8 bytes, expected 432 or more",
        ),
        (
            struct.pack("<III", 5, 432, 0) + b"QEMU\0\0\0\0" + b"\x07" + bytes(431),
            "QEMU's CPU note has version 7, expected 1",
        ),
    ],
)
def test_forged_notes(make, saved, notes: bytes, message: str) -> None:
    with pytest.raises(FormatError) as error:
        open_source(saved(make.elf_core([(0x1000, PAGE)], notes)))
    assert message in str(error.value)
