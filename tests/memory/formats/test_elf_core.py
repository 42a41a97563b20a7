"""ELF cores, made field by field."""

from __future__ import annotations

import struct

import pytest

from fivefold.errors import FormatError, MemoryReadError
from fivefold.memory import open_source
from fivefold.memory.formats import elf_core
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


@pytest.mark.parametrize(
    ("kind", "what"), [(0, "of type 0"), (1, "a relocatable file"), (2, "an executable"), (3, "a shared object")]
)
def test_other_elf_files(make, saved, kind: int, what: str) -> None:
    path = saved(make.elf_core([(0x1000, PAGE)], kind=kind))
    with pytest.raises(FormatError) as error:
        open_source(path)
    told = "not a core; expected type 4, as of `dump-guest-memory`"
    assert str(error.value) == f"{path}: the ELF file is {what}, {told}"


def test_segments_at_the_end_of_physical_memory(make, saved) -> None:
    last = (1 << 64) - 4096
    with open_source(saved(make.elf_core([(last, PAGE)]))) as source:
        assert source.extents == [(last, 1 << 64)]
    with pytest.raises(FormatError, match=r"segment 1 passes the end of physical memory at 0xfffffffffffff001$"):
        open_source(saved(make.elf_core([(last + 1, PAGE)])))


def test_a_core_without_memory(make, saved) -> None:
    with open_source(saved(make.elf_core([]))) as source:
        assert source.extents == []
        assert source.notes == ("the core holds no memory", "the core holds no notes, so no registers")


def qemu_note(cr3: int) -> bytes:
    return struct.pack("<II18Q", 1, 440, *range(18)) + bytes(240) + struct.pack("<6Q", 1, 0, 0, cr3, 0x20, 0)


@pytest.mark.parametrize("machine", [3, 62])
def test_the_machine_says_something_of_the_first_cpu(make, saved, machine: int) -> None:
    notes = make.note(b"CORE", 1, bytes(336)) * 2 + make.note(b"QEMU", 0, qemu_note(0x1000))
    notes += make.note(b"QEMU", 0, qemu_note(0x2000))
    with open_source(saved(make.elf_core([(0x1000, PAGE)], notes, machine=machine))) as source:
        assert [cpu.cr3 for cpu in source.cpus] == [0x1000, 0x2000]
        assert [cpu.elf_machine for cpu in source.cpus] == [machine, None]
        told = "ELF machine 386: the first CPU is not in long mode, so its tables are those of 32-bit or PAE paging; "
        assert source.notes == ((f"{told}expected 4- or 5-level paging",) if machine == 3 else ())
    notes = make.note(b"CORE", 1, bytes(336)) * 2
    with open_source(saved(make.elf_core([(0x1000, PAGE)], notes, machine=machine))) as source:
        assert [cpu.elf_machine for cpu in source.cpus] == [None, None]


def test_notes_of_several_segments(make, saved, monkeypatch: pytest.MonkeyPatch) -> None:
    """Together they may have so many bytes."""
    core = bytearray(make.elf_core([(0x1000, PAGE), (0x2000, make.note(b"VMCOREINFO", 0, b"A=1\n"))]))
    struct.pack_into("<I", core, 64 + 2 * 56, 4)
    path = saved(bytes(core))
    size = len(make.note(b"VMCOREINFO", 0, b"A=1\n"))
    monkeypatch.setattr(elf_core, "MAX_NOTE_BYTES", size)
    with open_source(path) as source:
        assert source.vmcoreinfo == {"A": "1"}
        assert source.extents == [(0x1000, 0x2000)]
    monkeypatch.setattr(elf_core, "MAX_NOTE_BYTES", size - 1)
    with pytest.raises(FormatError, match=rf": {size} bytes of notes, at most {size - 1} are read$"):
        open_source(path)


def test_the_number_of_segments(make, saved, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(make.elf_core([(0x1000, PAGE)] * 2))
    monkeypatch.setattr(elf_core, "MAX_SPANS", 3)
    open_source(path).close()
    monkeypatch.setattr(elf_core, "MAX_SPANS", 2)
    with pytest.raises(FormatError, match=r": 3 program headers, at most 2 are read$"):
        open_source(path)
