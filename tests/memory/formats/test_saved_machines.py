"""VirtualBox, Xen, Hyper-V, Cloud Hypervisor and Firecracker: what they save, made field by field; cut and forged."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fivefold.errors import FivefoldError, FormatError
from fivefold.memory import Source, is_memory, is_snapshot, open_source
from fivefold.memory.formats import xen_core
from fivefold.memory.formats.snapshots.xpress import unpack
from fivefold.units import PhysAddr

PAGE = 4096


def check_memory(source: Source, pages: dict[int, bytes]) -> None:
    for pa, data in pages.items():
        assert source.memory.read(PhysAddr(pa), len(data)) == data, hex(pa)


def check_registers(source: Source, registers: dict[str, int], *names: str) -> None:
    (cpu,) = source.cpus
    for name in names or registers:
        assert (getattr(cpu, name) if name[:2] in ("cr", "ef") else cpu.general[name]) == registers[name], name


def test_virtualbox(tmp_path: Path, machine_files: ModuleType) -> None:
    path = tmp_path / "vm.core"
    path.write_bytes(machine_files.virtualbox(machine_files.PAGES))
    with open_source(path) as source:
        assert source.format == "VirtualBox core"
        assert source.extents == [(0x1000, 0x3000), (0x1_0000_0000, 0x1_0000_1000)]
        check_memory(source, machine_files.PAGES)
        check_registers(source, machine_files.REGISTERS)
        assert source.cpus[0].segments["ss"].base == 5 and source.cpus[0].segments["tr"].selector == 12
        assert source.cpus[0].gdt == (0, 0x5000, 0x7F, 0) and source.cpus[0].idt == (0, 0x6000, 0xFFF, 0)
    path.write_bytes(machine_files.virtualbox(machine_files.PAGES, magic=0xC01AC0DF))
    with pytest.raises(FormatError, match="magic 0xc01ac0df, version 0x10006"):
        open_source(path)


@pytest.mark.parametrize("is_pv", [False, True])
def test_xen(tmp_path: Path, machine_files: ModuleType, is_pv: bool) -> None:
    path = tmp_path / "xen.core"
    path.write_bytes(machine_files.xen_core(machine_files.PAGES, is_pv=is_pv))
    with open_source(path) as source:
        assert source.format == "Xen core"
        assert source.extents == [(0x1000, 0x3000), (0x1_0000_0000, 0x1_0000_1000)]
        check_memory(source, machine_files.PAGES)
        names = {"cr0", "cr2", "cr3", "rip", "rsp", "rflags", "rax"} | (set() if is_pv else {"cr4"})
        check_registers(source, machine_files.REGISTERS, *names)
        assert source.cpus[0].cr4 is None or not is_pv
        assert ("machine addresses" in source.notes[0]) == is_pv


def test_xen_with_three_cpus(tmp_path: Path, machine_files: ModuleType) -> None:
    path = tmp_path / "xen.core"
    path.write_bytes(machine_files.xen_core(machine_files.PAGES, cpus=3))
    with open_source(path) as source:
        first = machine_files.REGISTERS["cr3"]
        assert [cpu.cr3 for cpu in source.cpus] == [first, first + 0x1000, first + 0x2000]


def test_xen_with_less_pages_than_frames(tmp_path: Path, machine_files: ModuleType) -> None:
    whole = bytearray(machine_files.xen_core(machine_files.PAGES))
    size_of_last = 64 + 64 * 5 + 32
    assert struct.unpack_from("<Q", whole, size_of_last) == (3 * 4096,)
    struct.pack_into("<Q", whole, size_of_last, 3 * 4096 - 1)
    (tmp_path / "xen.core").write_bytes(whole)
    with pytest.raises(FormatError, match=r"3 page numbers for 12287 bytes of pages$"):
        open_source(tmp_path / "xen.core")


def test_xen_frames_that_cannot_be(tmp_path: Path, machine_files: ModuleType) -> None:
    """A page without a frame is left out; frames beyond any memory, or twice, are refused."""
    whole = machine_files.xen_core(machine_files.PAGES)
    table = struct.pack("<3Q", 1, 2, 0x100000)
    assert whole.count(table) == 1
    path = tmp_path / "xen.core"
    for frames, says in (((1, 1, 2), "comes twice"), ((1, 2, 1 << 41), "less than 2")):
        path.write_bytes(whole.replace(table, struct.pack("<3Q", *frames)))
        with pytest.raises(FormatError, match=says):
            open_source(path)
    path.write_bytes(whole.replace(table, struct.pack("<3Q", 1, (1 << 64) - 1, 3)))
    with open_source(path) as source:
        assert source.extents == [(0x1000, 0x2000), (0x3000, 0x4000)]
        assert source.memory.read(PhysAddr(0x3000), 4) == bytes(range(4))


def sections_of(*rows: tuple[str, bytes], names: int = 1, size: int = 64) -> bytes:
    """An ELF core of Xen's with these sections behind an empty one and that of the names."""
    texts = b"\0" + b"".join(name.encode() + b"\0" for name, _ in rows)
    at, body, table = 64 + 64 * (len(rows) + 2), b"", bytes(64)
    table += struct.pack("<IIQQQQIIQQ", 0, 3, 0, 0, at, len(texts), 0, 0, 1, 0)
    body, text = texts, 1
    for name, data in rows:
        table += struct.pack("<IIQQQQIIQQ", text, 1, 0, 0, at + len(body), len(data), 0, 0, 1, 0)
        body, text = body + data, text + len(name) + 1
    ident = b"\x7fELF\2\1\1".ljust(16, b"\0")
    return (
        struct.pack("<16sHHIQQQIHHHHHH", ident, 4, 62, 1, 0, 0, 64, 0, 64, 0, 0, size, len(rows) + 2, names)
        + table
        + body
    )


def frames(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}Q", *numbers)


PAGES_OF_FOUR = b"".join(bytes([number]) * PAGE for number in range(4))


def test_xen_runs(tmp_path: Path) -> None:
    """Frames that follow on each other, but not in the file, are two runs; so are those in any other order."""
    rows = ((".xen_pages", PAGES_OF_FOUR + b"rest"), (".xen_pfn", frames(8, 9, 3, (1 << 40) - 1) + b"rest"))
    (tmp_path / "vm").write_bytes(sections_of(*rows, (".other", b"x"), (".xen_pages", b"the first counts")))
    with open_source(tmp_path / "vm") as source:
        assert source.extents == [(0x3000, 0x4000), (0x8000, 0xA000), ((1 << 52) - PAGE, 1 << 52)]
        assert [source.memory.read(PhysAddr(pa), 1)[0] for pa in (0x3000, 0x8FFF, 0x9000, (1 << 52) - 1)] == [
            2,
            0,
            1,
            3,
        ]
        assert source.cpus == ()
        assert source.notes == ("Xen HVM guest: addresses are its own",)
    rows = ((".xen_pages", PAGES_OF_FOUR), (".xen_p2m", frames(0, 8, 1, (1 << 32) - 1, 2, 9, 3, (1 << 64) - 1)))
    (tmp_path / "vm").write_bytes(sections_of(*rows))
    with open_source(tmp_path / "vm") as source:
        assert source.extents == [(0x8000, 0xA000)]
        assert [source.memory.read(PhysAddr(pa), 1)[0] for pa in (0x8000, 0x9000)] == [0, 2]
        assert source.notes == ("Xen PV guest: addresses are machine addresses, as in its page tables",)
    (tmp_path / "vm").write_bytes(sections_of((".xen_pages", PAGES_OF_FOUR), (".xen_pfn", frames((1 << 64) - 1))))
    with open_source(tmp_path / "vm") as source:
        assert source.extents == []


XEN = ((".xen_pages", PAGES_OF_FOUR), (".xen_pfn", frames(1, 2, 3, 4)))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (sections_of(XEN[0]), "a Xen core without .xen_pfn and .xen_p2m: nothing says where its pages lie"),
        (sections_of((".xen_pages", PAGES_OF_FOUR[1:]), XEN[1]), "4 page numbers for 16383 bytes of pages"),
        (sections_of(*XEN)[:-1], "section .xen_pfn needs bytes up to 0x4175, the file ends at 0x4174: tr"),
        (sections_of(XEN[0], (".xen_pfn", frames(1, 2, 1 << 40))), "page at frame 0x10000000000; expected less than"),
        (sections_of(XEN[0], (".xen_pfn", frames(1, 3, 3))), "a frame comes twice, expected each once"),
        (
            sections_of(*XEN, (".xen_prstatus", bytes(5167))),
            "5167 bytes of CPUs, expected a multiple of 5168, up to 4096",
        ),
    ],
)
def test_xen_sections_that_do_not_fit(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "vm").write_bytes(data)
    with pytest.raises(FormatError) as error:
        open_source(tmp_path / "vm")
    assert says in str(error.value)


def test_xen_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vm").write_bytes(sections_of(*XEN, (".xen_prstatus", bytes(2 * 5168))))
    for name, most, says in (
        ("MAX_CPUS", 2, "10336 bytes of CPUs, expected a multiple of 5168, up to 1"),
        ("MOST_NAMES", 1 + 11 + 9 + 14, "35 bytes of names of sections, at most 34 are read"),
        ("MOST_SECTIONS", 5, ""),
    ):
        monkeypatch.setattr(xen_core, name, most)
        with open_source(tmp_path / "vm") as source:
            assert len(source.cpus) == 2
        monkeypatch.setattr(xen_core, name, most - 1)
        if says:
            with pytest.raises(FormatError, match=f"vm: {says}$"):
                open_source(tmp_path / "vm")
        else:  # what has so many sections is none of Xen's
            with open_source(tmp_path / "vm") as source:
                assert source.format == "ELF core"
        monkeypatch.undo()


@pytest.mark.parametrize("data", [sections_of(*XEN, names=4), sections_of(*XEN, size=63), sections_of((".xen", b""))])
def test_an_elf_core_without_segments_that_is_not_xens(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "vm").write_bytes(data)
    with open_source(tmp_path / "vm") as source:
        assert (source.format, source.extents) == ("ELF core", [])


@pytest.mark.parametrize("way", ["plain", "text", "bytes"])
@pytest.mark.parametrize("opened", ["", "state.json", "memory-ranges"])
def test_cloud_hypervisor(tmp_path: Path, machine_files: ModuleType, way: str, opened: str) -> None:
    for name, data in machine_files.cloud_hypervisor(machine_files.PAGES, way=way).items():
        (tmp_path / name).write_bytes(data)
    with open_source(tmp_path / opened if opened else tmp_path) as source:
        assert source.format == "Cloud Hypervisor snapshot"
        assert source.extents == [(0x1000, 0x3000), (0x1_0000_0000, 0x1_0000_1000)]
        check_memory(source, machine_files.PAGES)
        check_registers(source, machine_files.REGISTERS, "cr0", "cr3", "cr4", "efer", "rip", "rflags", "rax")


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (b"{", "is not the JSON of a snapshot"),
        (b"[" * 100_000, "is not the JSON of a snapshot"),
        (b"{}", "no table of memory"),
        (b'{"memory_ranges": {"data": [{"gpa": 0, "length": 1e9}]}}', "no table of memory"),
        (b'{"memory_ranges": {"data": [{"gpa": 0, "length": 99999999}]}}', "truncated or forged"),
        (b'{"memory_ranges": [{"gpa": 4096, "length": 4096}, {"gpa": 0, "length": 8192}]}', "ranges overlap"),
    ],
)
def test_cloud_hypervisor_forged(tmp_path: Path, machine_files: ModuleType, state: bytes, says: str) -> None:
    for name, data in machine_files.cloud_hypervisor(machine_files.PAGES).items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "state.json").write_bytes(state)
    with pytest.raises(FormatError, match=says):
        open_source(tmp_path)


def test_cloud_hypervisor_alone(tmp_path: Path) -> None:
    """Memory without its state is a raw image, a folder without a snapshot is none."""
    (tmp_path / "memory-ranges").write_bytes(bytes(8192))
    with open_source(tmp_path / "memory-ranges") as source:
        assert source.format == "raw image"
    with pytest.raises(FormatError, match="is a directory"):
        open_source(tmp_path)


GUEST = {0: b"\x11" * 0x5000, 0x1_0000_0000: b"\x22" * 0x2000}


@pytest.mark.parametrize("way", ["old", "plain", "flags"])
def test_firecracker(tmp_path: Path, machine_files: ModuleType, way: str) -> None:
    for name, data in machine_files.firecracker(GUEST, way=way).items():
        (tmp_path / name).write_bytes(data)
    with open_source(tmp_path / "vmstate") as source:
        assert source.format == "Firecracker snapshot"
        assert source.extents == [(0, 0x5000), (0x1_0000_0000, 0x1_0000_2000)]
        check_memory(source, GUEST)
        check_registers(source, machine_files.REGISTERS)
    (tmp_path / "twin").write_bytes(bytes(0x7000))
    with pytest.raises(FormatError, match="mem, twin are all as long as the memory"):
        open_source(tmp_path / "vmstate")
    (tmp_path / "twin").unlink()
    (tmp_path / "mem").unlink()
    with pytest.raises(FormatError, match="in a file of 28672"):
        open_source(tmp_path / "vmstate")
    (tmp_path / "vmstate").write_bytes((tmp_path / "vmstate").read_bytes()[:30])
    with pytest.raises(FormatError, match="names no regions of memory"):
        open_source(tmp_path / "vmstate")


@pytest.mark.parametrize("is_packed", [False, True])
def test_hyperv(tmp_path: Path, machine_files: ModuleType, is_packed: bool) -> None:
    path = tmp_path / "vm.vmrs"
    path.write_bytes(machine_files.hyperv(machine_files.PAGES, is_packed=is_packed))
    with open_source(path) as source:
        assert source.format == "Hyper-V saved state" and source.cpus == ()
        assert source.extents == [(0, 1 << 20), (0x1_0000_0000, 0x1_0010_0000)]
        check_memory(source, machine_files.PAGES)
        assert source.memory.read(PhysAddr(0x3000), PAGE) == bytes(PAGE)


def test_hyperv_forged(tmp_path: Path, machine_files: ModuleType) -> None:
    whole = machine_files.hyperv(machine_files.PAGES)
    path = tmp_path / "vm.vmrs"
    run = struct.pack("<QQQ", 256, 0, 0)
    for data, says in (
        (whole[:8] + b"\xff" + whole[9 : PAGE + 8] + b"\xff" + whole[PAGE + 9 :], "neither header"),
        (whole.replace(b"RamBlock", b"RamClock"), "holds no memory"),
        (whole.replace(run, struct.pack("<QQQ", 1 << 50, 0, 0)), "has 1125899906842624 pages"),
        (whole.replace(run, struct.pack("<QQQ", 1 << 21, 0, 0)), "runs of memory overlap"),
        (whole[: 3 << 19], "RamBlock1 of 1048576 bytes at 0x108000, the file ends at 0x180000"),
    ):
        path.write_bytes(data)
        with pytest.raises(FormatError, match=says):
            open_source(path)
    packed = machine_files.hyperv(machine_files.PAGES, is_packed=True)
    at = packed.index(struct.pack("<I", 0xFFFFFFFE), 8 * PAGE)
    path.write_bytes(packed[:at] + struct.pack("<I", 5000) + packed[at + 4 :])
    with open_source(path) as source, pytest.raises(FormatError, match="RamBlock0 is broken at"):
        source.memory.read(PhysAddr(0), 8)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("00000020 4142 0800", b"ABABA"),
        ("00000000 5758595a", b"WXYZ"),
        ("00000040 41 0100", b"AAAAA"),
        ("00000040 41 0700 02", b"A" * 13),
        ("00000060 41 0700 f2 0700 ", b"A" * (1 + 12 + 25)),
        ("00000040 41 0700 0f 05", b"A" * (1 + 30)),
        ("00000040 41 0700 0f ff 00 01", b"A" * (1 + 259)),
    ],
)
def test_plain_lz77(raw: str, expected: bytes) -> None:
    """By hand, after the rules of [MS-XCA]: literals, matches, long lengths in half bytes, bytes and words."""
    data = bytes.fromhex(raw)
    if len(expected) == 38:  # the second long length takes the upper half of the first one's byte: 15, then a byte
        data += b"\0"
        expected = b"A" * 36
    assert unpack(data, len(expected)) == expected


Makers = dict[str, Callable[[ModuleType], dict[str, bytes]]]
ONE_FILE: Makers = {
    "virtualbox": lambda make: {"vm": make.virtualbox(make.PAGES)},
    "xen": lambda make: {"vm": make.xen_core(make.PAGES)},
    "xen-pv": lambda make: {"vm": make.xen_core(make.PAGES, is_pv=True)},
    "cloud-hypervisor": lambda make: {**(files := make.cloud_hypervisor(make.PAGES)), "vm": files["state.json"]},
    "firecracker": lambda make: {"mem": (files := make.firecracker(GUEST))["mem"], "vm": files["vmstate"]},
    "hyperv": lambda make: {"vm": make.hyperv({0: b"\x11" * PAGE}, is_packed=True)},
}


def damaged(data: bytes) -> Iterator[bytes]:
    """Cut at many places, and with each word of the headers set to what breaks readers."""
    for size in [*range(8, min(400, len(data)), 9), *range(400, len(data), max(len(data) // 20, 1))]:
        yield data[:size]
    for at in range(0, min(1200, len(data) - 8), 24):
        for value in (0, (1 << 64) - 1, 1 << 52):
            yield data[:at] + value.to_bytes(8, "little") + data[at + 8 :]


@pytest.mark.parametrize("name", ONE_FILE)
def test_damaged(tmp_path: Path, machine_files: ModuleType, name: str) -> None:
    """An answer or one clear line, and bytes of the file alone."""
    files = ONE_FILE[name](machine_files)
    opened = "state.json" if name == "cloud-hypervisor" else "vm"
    for other, data in files.items():
        (tmp_path / other).write_bytes(data)
    for data in damaged(files["vm"]):
        (tmp_path / opened).write_bytes(data)
        try:
            with open_source(tmp_path / opened, max_copy=1 << 22) as source:
                for extent in source.extents[:8]:
                    assert len(source.memory.read(PhysAddr(extent.end - 8), 8)) == 8
        except FivefoldError as error:
            assert "\n" not in str(error)


def test_json_numbers(tmp_path: Path, machine_files: ModuleType) -> None:
    """Registers that are no 64-bit numbers are not registers."""
    files = machine_files.cloud_hypervisor(machine_files.PAGES)
    state: Any = json.loads(files["state.json"])
    state["snapshots"]["cpu-manager"]["snapshots"]["0"]["snapshot_data"]["state"]["Kvm"]["sregs"]["cr3"] = -1
    for name, data in (files | {"state.json": json.dumps(state).encode()}).items():
        (tmp_path / name).write_bytes(data)
    with open_source(tmp_path) as source:
        assert source.cpus == ()


@pytest.mark.parametrize("name", ONE_FILE)
def test_told_from_a_log(tmp_path: Path, machine_files: ModuleType, name: str) -> None:
    """What `explain` is given may be a log or one of these, by its first bytes, or the names of its folder's files."""
    for other, data in ONE_FILE[name](machine_files).items():
        (tmp_path / other).write_bytes(data)
    if name == "cloud-hypervisor":
        assert is_snapshot(tmp_path) and is_snapshot(tmp_path / "state.json")
    else:
        assert is_memory((tmp_path / "vm").read_bytes()[:16]) and not is_snapshot(tmp_path)
    assert not is_memory(b"[   12.345678] B") and not is_memory(b"")
