"""Every register of every format: words that say where they lie, against the offsets that the formats document."""

from __future__ import annotations

import struct
from collections.abc import Callable
from types import ModuleType

import pytest

from fivefold.errors import FormatError
from fivefold.memory import open_source
from fivefold.memory.formats import notes as notes_module
from fivefold.memory.formats import virtualbox, xen_core
from fivefold.memory.formats.notes import Note, cpus_of, split_notes
from fivefold.memory.formats.snapshots.kvm_registers import cpu_of_bytes
from fivefold.memory.registers import CpuState, Segment

TAG = 0x1234_5600_0000_0000


def words(size: int, **fixed: int) -> bytes:
    """Each word is `TAG` and its own offset; *fixed* has others by offset (``at8=7``)."""
    out = bytearray(b"".join(struct.pack("<Q", TAG | at) for at in range(0, size + 7, 8))[:size])
    for at, value in fixed.items():
        struct.pack_into("<Q", out, int(at.removeprefix("at")), value)
    return bytes(out)


def general_at(offsets: dict[str, int]) -> dict[str, int]:
    return {name: TAG | at for name, at in offsets.items()}


def numbered(first: int, at: int) -> dict[str, int]:
    """R8 to R15, or down from *first*."""
    return {f"r{number}": at + 8 * (number - first) for number in range(first, 16)}


def test_qemus_note() -> None:
    """``QEMUCPUState``: version, size, general registers, ten segments of 24 bytes, CR0 to CR4."""
    (cpu,) = cpus_of([Note("QEMU", 0, words(432, at0=1))], "toy")
    offsets = {"rax": 8, "rbx": 16, "rcx": 24, "rdx": 32, "rsi": 40, "rdi": 48, "rsp": 56, "rbp": 64}
    assert cpu.general == general_at(offsets | numbered(8, 72) | {"rip": 136, "rflags": 144})
    assert (cpu.cr0, cpu.cr2, cpu.cr3, cpu.cr4, cpu.efer) == (TAG | 392, TAG | 408, TAG | 416, TAG | 424, None)
    data = words(432, at0=1)
    for number, name in enumerate(("cs", "ds", "es", "fs", "gs", "ss", "ldt", "tr", "gdt", "idt")):
        at = 152 + 24 * number
        selector, limit, flags = struct.unpack_from("<III", data, at)
        assert cpu.segments[name] == Segment(selector, TAG | at + 16, limit, flags)
    assert len(cpu.segments) == 10
    with pytest.raises(FormatError, match=r"^toy: QEMU's CPU note has 431 bytes, expected 432 or more$"):
        cpus_of([Note("QEMU", 0, words(431, at0=1))], "toy")


def test_prstatus() -> None:
    """``struct elf_prstatus`` of x86-64: 27 registers from offset 112 on."""
    (cpu,) = cpus_of([Note("CORE", 1, words(336))], "toy")
    order = "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs rflags rsp ss fs_base gs_base"
    names = [*order.split(), "ds", "es", "fs", "gs"]
    assert cpu.general == {name: TAG | 112 + 8 * number for number, name in enumerate(names)}
    assert (cpu.cr0, cpu.cr3) == (None, None)
    assert len(cpus_of([Note("CORE", 1, words(328))], "toy")) == 1
    with pytest.raises(FormatError, match=r"^toy: PRSTATUS note has 327 bytes, expected 336 as x86-64 kernels"):
        cpus_of([Note("CORE", 1, words(327))], "toy")
    with pytest.raises(FormatError, match=r"^toy is a core of a 32-bit system \(PRSTATUS of 144 bytes\)"):
        cpus_of([Note("CORE", 1, words(144))], "toy")
    for other in (Note("CORE", 2, words(336)), Note("LINUX", 1, words(336))):
        assert cpus_of([other], "toy") == ()


def vbox_cpu(size: int = 752) -> bytes:
    return words(size)


def test_virtualboxes_note() -> None:
    """``DBGFCORECPU``: general registers, six selectors of 24 bytes, CR0 to CR4, GDTR, IDTR, LDTR, TR, MSRs."""
    note = Note("VBCPU", 0xB01, vbox_cpu())
    (cpu,) = virtualbox.cpus_of([note], "toy")
    offsets = {"rax": 0, "rbx": 8, "rcx": 16, "rdx": 24, "rsi": 32, "rdi": 40}
    offsets |= numbered(8, 48) | {"rip": 112, "rsp": 120, "rbp": 128, "rflags": 136}
    assert cpu.general == general_at(offsets)
    assert (cpu.cr0, cpu.cr2, cpu.cr3, cpu.cr4) == tuple(TAG | 288 + 8 * number for number in range(4))
    assert cpu.efer == TAG | 288 + 96 + 32 + 48 + 24
    for number, name in enumerate(("cs", "ds", "es", "fs", "gs", "ss")):
        selector(cpu, name, 144 + 24 * number)
    selector(cpu, "ldt", 416)
    selector(cpu, "tr", 440)
    for name, at in (("gdt", 384), ("idt", 400)):
        (limit,) = struct.unpack_from("<I", vbox_cpu(), at + 8)
        assert cpu.segments[name] == Segment(0, TAG | at, limit, 0)


def selector(cpu: CpuState, name: str, at: int) -> None:
    """A ``DBGFCORESEL``: base, limit, attributes, selector."""
    base, limit, attributes, number = struct.unpack_from("<QIIH", vbox_cpu(), at)
    assert cpu.segments[name] == Segment(number, base, limit, attributes), name


@pytest.mark.parametrize(
    ("core", "cpu", "says"),
    [
        (struct.pack("<II", 0xC01AC0DE, 0x10000), 496, ""),
        (struct.pack("<II", 0xC01AC0DE, 0x1FFFF), 496, ""),
        (struct.pack("<II", 0xC01AC0DE, 0x20000), 496, "magic 0xc01ac0de, version 0x20000; expected 0xc01ac0de, 1.x"),
        (struct.pack("<II", 0xC01AC0DE, 0xFFFF), 496, "magic 0xc01ac0de, version 0xffff; expected 0xc01ac0de, 1.x"),
        (struct.pack("<II", 0xC01AC0DF, 0x10000), 496, "magic 0xc01ac0df, version 0x10000; expected 0xc01ac0de, 1.x"),
        (struct.pack("<II", 0xC01AC0DE, 0x10000)[:7], 496, "VirtualBox's core note has 7 bytes, expected 24"),
        (struct.pack("<II", 0xC01AC0DE, 0x10000), 495, "VirtualBox's CPU note has 495 bytes, expected 496 or more"),
    ],
)
def test_virtualboxes_versions(core: bytes, cpu: int, says: str) -> None:
    kept = [Note("VBCORE", 0xB00, core), Note("VBCPU", 0xB01, vbox_cpu(cpu)), Note("VBCPU", 0xB02, b"")]
    kept += [Note("VBCORE", 0xB01, b""), Note("X", 0xB01, b""), Note("X", 0xB00, b"")]
    assert virtualbox.is_virtualbox(kept)
    assert not virtualbox.is_virtualbox(kept[1:])
    if says:
        with pytest.raises(FormatError) as error:
            virtualbox.cpus_of(kept, "toy")
        assert str(error.value).startswith("toy: VirtualBox's ") and str(error.value).endswith(says)
    else:
        assert len(virtualbox.cpus_of(kept, "toy")) == 1


@pytest.mark.parametrize("kind", ["HVM", "PV"])
def test_xens_context(kind: str) -> None:
    """``struct vcpu_guest_context``: the user's registers from 520 on, CR0 to CR7 from 4984 on."""
    cpu = xen_core._cpu(words(5168), kind)
    order = "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi - rip - rflags rsp"
    offsets = {name: 520 + 8 * number for number, name in enumerate(order.split()) if name != "-"}
    assert cpu.general == general_at(offsets)
    assert (cpu.cr0, cpu.cr2, cpu.cr3) == tuple(TAG | 4984 + 8 * number for number in (0, 2, 3))
    assert cpu.cr4 == (None if kind == "PV" else TAG | 5016)


def test_kvms_structures() -> None:
    """``struct kvm_regs`` and ``struct kvm_sregs``."""
    special = words(312)
    cpu = cpu_of_bytes(special, words(144), "toy")
    assert cpu is not None and cpu.source == "toy"
    offsets = {"rax": 0, "rbx": 8, "rcx": 16, "rdx": 24, "rsi": 32, "rdi": 40, "rsp": 48, "rbp": 56}
    assert cpu.general == general_at(offsets | numbered(8, 64) | {"rip": 128, "rflags": 136})
    for number, name in enumerate(("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")):
        base, limit, one = struct.unpack_from("<QIH", special, 24 * number)
        assert cpu.segments[name] == Segment(one, base, limit, 0)
    for name, at in (("gdt", 192), ("idt", 208)):
        base, limit = struct.unpack_from("<QH", special, at)
        assert cpu.segments[name] == Segment(0, base, limit, 0)
    assert (cpu.cr0, cpu.cr2, cpu.cr3, cpu.cr4, cpu.efer) == tuple(TAG | at for at in (224, 232, 240, 248, 264))
    assert cpu_of_bytes(words(311), words(144), "toy") is cpu_of_bytes(words(313), words(144), "toy") is None
    for general in (words(143), words(145), None, {}, [256]):
        found = cpu_of_bytes(special, general, "toy")
        assert found is not None and found.general == {}
    assert cpu_of_bytes(list(special), list(words(144)), "toy") == cpu


def test_windows_context(saved: Callable[[bytes], str]) -> None:
    """``CONTEXT`` in the header, from 0x348 on: RAX at 0x78, RIP at 0xf8."""
    head = bytearray(words(0x2000))
    head[:8] = b"PAGEDU64"
    struct.pack_into("<II", head, 0x30, 0x8664, 1)
    struct.pack_into("<IIQQQ", head, 0x88, 1, 0, 1, 0, 1)
    struct.pack_into("<I", head, 0xF98, 1)
    with open_source(saved(bytes(head) + bytes(4096))) as source:
        (cpu,) = source.cpus
    names = [
        "rax",
        "rcx",
        "rdx",
        "rbx",
        "rsp",
        "rbp",
        "rsi",
        "rdi",
        "r8",
        "r9",
        "r10",
        "r11",
        "r12",
        "r13",
        "r14",
        "r15",
        "rip",
    ]
    assert cpu.general == {name: TAG | 0x3C0 + 8 * number for number, name in enumerate(names)}
    assert cpu.cr3 == TAG | 0x10


@pytest.mark.parametrize("name", [b"", b"A", b"ABC", b"ABCD"])
@pytest.mark.parametrize("size", [0, 1, 3, 4, 5])
def test_notes_of_any_size(make: ModuleType, name: bytes, size: int) -> None:
    """The padding of the last one's data may be missing."""
    raw = make.note(name, 7, b"x" * size) + make.note(b"LAST", 9, b"y" * size)
    cut = raw[: len(raw) - -size % 4]
    for data in (raw, cut, raw + bytes(11), raw + bytes(12), raw + bytes(100) + b"x"):
        assert list(split_notes(data, "toy")) == [(name.decode(), 7, b"x" * size), ("LAST", 9, b"y" * size)]
    if size:
        with pytest.raises(FormatError) as error:
            list(split_notes(cut[:-1], "toy"))
        at = len(make.note(name, 7, b"x" * size))
        assert str(error.value) == f"toy: note at {at:#x} claims 5 + {size} bytes, {8 + size - 1} are left"


def test_the_number_of_notes(make: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notes_module, "MAX_NOTES", 3)
    assert len(list(split_notes(make.note(b"X", 7, b"") * 2, "toy"))) == 2
    with pytest.raises(FormatError, match=r"^toy: more than 3 notes$"):
        list(split_notes(make.note(b"X", 7, b"") * 4, "toy"))
