"""QEMU's migration streams: one that QEMU itself writes, and others made entry by entry."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
import struct
import subprocess
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lzallright
import pytest
import zstandard

from fivefold.errors import FormatError
from fivefold.machine import available
from fivefold.machine.child import Child
from fivefold.memory import open_source
from fivefold.memory.live.qmp_client import QmpClient
from fivefold.memory.registers import parse_info_registers
from fivefold.units import MIB, PhysAddr

PAGE = 4096


def name(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def stream(ram: int = 8, entries: bytes = b"", machine: bytes = b"pc-q35-7.2", magic: bytes = b"QEVM") -> bytes:
    """A stream with *ram* pages in pc.ram and *entries* in its second section."""
    out = magic + struct.pack(">I", 3) + b"\x07" + struct.pack(">I", len(machine)) + machine
    out += b"\x01" + struct.pack(">I", 2) + name(b"ram") + struct.pack(">II", 0, 4)
    out += struct.pack(">Q", (ram + 1) * PAGE | 4) + name(b"pc.ram") + struct.pack(">Q", ram * PAGE)
    out += name(b"rom") + struct.pack(">Q", PAGE) + struct.pack(">Q", 0x10) + b"\x7e" + struct.pack(">I", 2)
    out += b"\x02" + struct.pack(">I", 2) + entries + struct.pack(">Q", 0x10) + b"\x7e" + struct.pack(">I", 2)
    return out + b"\x03" + struct.pack(">I", 2) + struct.pack(">Q", 0x10) + b"\x7e" + struct.pack(">I", 2) + b"\x04rest"


def page(number: int, data: bytes, block: bytes | None = b"pc.ram") -> bytes:
    flags = (8 if len(data) == PAGE else 2) | (0x20 if block is None else 0)
    return struct.pack(">Q", number * PAGE | flags) + (b"" if block is None else name(block)) + data


ENTRIES = (
    page(0, b"a" * PAGE)
    + page(1, b"\0", None)
    + page(2, b"\x5a", None)
    + page(0, b"r" * PAGE, b"rom")
    + page(5, b"b" * PAGE)
    + page(0, b"c" * PAGE, None)
)


def check(path: Path) -> None:
    with open_source(path) as source:
        assert source.extents == [(0, 3 * PAGE), (5 * PAGE, 6 * PAGE)]
        assert source.memory.read(PhysAddr(0), 3 * PAGE) == b"c" * PAGE + bytes(PAGE) + b"\x5a" * PAGE
        assert source.memory.read(PhysAddr(5 * PAGE), PAGE) == b"b" * PAGE
        assert source.memory.written() == [(0, PAGE), (2 * PAGE, 3 * PAGE), (5 * PAGE, 6 * PAGE)]


def test_pages(tmp_path: Path) -> None:
    """The last that is told of a page counts, of pages alike only the byte, of the ROM's block nothing."""
    (tmp_path / "state").write_bytes(stream(entries=ENTRIES))
    check(tmp_path / "state")


def test_mapped_ram(tmp_path: Path) -> None:
    """Each page at a place of its own, as QEMU 9 writes it to a file: those without a bit are zeros."""
    head = b"QEVM" + struct.pack(">I", 3) + b"\x07" + struct.pack(">I", 10) + b"pc-q35-9.0"
    head += b"\x05\x1aconfiguration/capabilities" + struct.pack(">II", 1, 1) + name(b"mapped-ram")
    head += b"\x01" + struct.pack(">I", 2) + name(b"ram") + struct.pack(">II", 0, 4) + struct.pack(">Q", 10 * PAGE | 4)
    head += name(b"pc.ram") + struct.pack(">Q", 10 * PAGE)
    place = len(head) + 28
    head += struct.pack(">IQQQ", 1, PAGE, place, 0x1000) + b"\x22\x02"
    rest = struct.pack(">Q", 0x10) + b"\x7e" + struct.pack(">I", 2)
    rest += b"\x03" + struct.pack(">I", 2) + struct.pack(">Q", 0x10) + b"\x7e" + struct.pack(">I", 2)
    pages = b"".join(bytes([65 + n]) * PAGE for n in range(10))
    path = tmp_path / "state"
    whole = head.ljust(0x1000, b"\0") + pages + rest
    path.write_bytes(whole)
    with open_source(path) as source:
        assert source.extents == [(0, 10 * PAGE)]
        assert source.memory.written() == [(PAGE, 2 * PAGE), (5 * PAGE, 6 * PAGE), (9 * PAGE, 10 * PAGE)]
        assert source.memory.read(PhysAddr(PAGE - 1), 2) == b"\0B"
        assert source.memory.read(PhysAddr(9 * PAGE), PAGE) == b"J" * PAGE
    for data, says in (
        (whole[:0x5000], "mapped RAM of version 1"),
        (whole[: len(whole) - 20], "ends at"),
        (whole.replace(struct.pack(">IQ", 1, PAGE), struct.pack(">IQ", 2, PAGE)), "mapped RAM of version 2"),
        (whole.replace(struct.pack(">QQ", place, 0x1000), struct.pack(">QQ", 1 << 50, 0x1000)), "truncated or forged"),
    ):
        path.write_bytes(data)
        with pytest.raises(FormatError, match=says):
            open_source(path)


def test_commands_between(tmp_path: Path) -> None:
    """QEMU 10 tells the other side that the guest stands still, before the last section of RAM."""
    whole = stream(entries=ENTRIES)
    at = whole.index(b"\x03" + struct.pack(">I", 2) + struct.pack(">Q", 0x10))
    command = b"\x08" + struct.pack(">HH", 12, 3) + b"\x7e\x7e\x7e"
    (tmp_path / "state").write_bytes(whole[:at] + command * 2 + whole[at:])
    check(tmp_path / "state")
    (tmp_path / "state").write_bytes(whole[:at] + command * 2000 + whole[at:])
    with pytest.raises(FormatError, match="section of kind 0x8"):
        open_source(tmp_path / "state")


BITMAPS = struct.pack(">I", 3)


def other(kind: int, data: bytes, number: bytes = BITMAPS) -> bytes:
    return bytes([kind]) + number + data + b"\x7e" + number


@pytest.mark.parametrize("size", [0, 4, 0xFFFB, 0xFFFC, 0x10000, 0x23456])
def test_sections_of_others_between_those_of_ram(tmp_path: Path, size: int) -> None:
    """Bitmaps of disks, and in a background snapshot every device; what they hold ends with their number."""
    data = (b"\x7e\0\0\0\x02" * (size // 5 + 1))[:size]
    whole = stream(entries=ENTRIES)
    part, end = (whole.index(bytes([kind]) + struct.pack(">I", 2)) for kind in (2, 3))
    head = name(b"dirty-bitmap") + struct.pack(">II", 0, 1)
    (tmp_path / "state").write_bytes(
        whole[:part] + other(1, head + data) + whole[part:end] + other(2, data) + other(3, b"\x01") + whole[end:]
    )
    check(tmp_path / "state")
    (tmp_path / "state").write_bytes(whole[:part] + other(4, data) + b"\x02" + BITMAPS + data + whole[part:])
    with pytest.raises(FormatError, match=r"the section at 0x[0-9a-f]+, before RAM has ended, has no end$"):
        open_source(tmp_path / "state")


def libvirt(inner: bytes, packed: int = 0, mark: bytes = b"LibvirtQemudSave") -> bytes:
    xml = b"<domain/>".ljust(64, b"\0")
    return mark + struct.pack("<19I", 2, len(xml), 1, packed, 0, *[0] * 14) + xml + inner


def test_libvirt(tmp_path: Path) -> None:
    path = tmp_path / "save"
    path.write_bytes(libvirt(stream(entries=ENTRIES)))
    check(path)
    for data, says in (
        (libvirt(b"", 9), "saved by libvirt in way 9|no QEMU stream behind"),
        (libvirt(b"x", 9), "saved by libvirt in way 9"),
        (libvirt(b"not gzip", 1), "broken gzip data"),
        (libvirt(gzip.compress(b"no stream at all"), 1), "no QEMU stream behind"),
        (libvirt(b"", mark=b"LibvirtQemudPart"), "stopped while it saved"),
        (libvirt(b"\0" * 16), "no QEMU stream behind"),
    ):
        path.write_bytes(data)
        with pytest.raises(FormatError, match=says):
            open_source(path)


@pytest.mark.parametrize("way", [1, 2, 3, 4, 5])
def test_packed_by_libvirt(tmp_path: Path, way: int) -> None:
    """Each of its ways; cut or damaged anywhere it is refused."""
    pack: dict[int, Callable[[bytes], bytes]] = {
        1: gzip.compress,
        2: bz2.compress,
        3: lzma.compress,
        4: lzop,
        5: lambda data: bytes(zstandard.ZstdCompressor().compress(data)),
    }
    whole = libvirt(pack[way](stream(entries=ENTRIES)), way)
    path = tmp_path / "save"
    path.write_bytes(whole)
    check(path)
    for size in range(100, len(whole) - 8, 7):
        path.write_bytes(whole[:size])
        with pytest.raises(FormatError):
            open_source(path)


def lzop(data: bytes, block: int = 1 << 14) -> bytes:
    """As lzop writes it: its header, blocks with the sum of what they hold, those that do not shrink as they are."""
    out = b"\x89LZO\x00\r\n\x1a\n" + struct.pack(">HHHBBIIIIB", 0x1030, 0x2080, 0x0940, 1, 5, 1, 0, 0, 0, 3) + b"abc"
    out += bytes(4)
    for at in range(0, len(data), block):
        piece = data[at : at + block]
        packed = bytes(lzallright.LZOCompressor().compress(piece))
        packed = packed if len(packed) < len(piece) else piece
        out += struct.pack(">III", len(piece), len(packed), zlib.adler32(piece)) + packed
    return out + bytes(4)


def test_cut(tmp_path: Path) -> None:
    whole = stream(entries=ENTRIES)
    for size in [*range(8, 200), *range(200, len(whole) - 16, 311)]:
        (tmp_path / "state").write_bytes(whole[:size])
        with pytest.raises(FormatError):
            open_source(tmp_path / "state")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (stream(entries=page(8, b"\0")), "of no block of RAM"),
        (stream(entries=page(0, b"\0", None)), "of no block of RAM"),
        (stream(entries=page(0, b"\0", b"none")), "of no block of RAM"),
        (stream(entries=struct.pack(">Q", 0x40)), "XBZRLE"),
        (stream(entries=struct.pack(">Q", 0x100)), "compressed pages"),
        (stream(ram=1 << 40), "expected at most"),
        (b"QEVM" + struct.pack(">I", 2) + bytes(64), "version 2, expected 3"),
        (b"QEVM" + struct.pack(">I", 3) + bytes(64), "no section of RAM"),
    ],
)
def test_forged(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "state").write_bytes(data)
    with pytest.raises(FormatError, match=says):
        open_source(tmp_path / "state")


def described(devices: list[dict[str, Any]]) -> bytes:
    """The end of a stream: what its devices look like."""
    text = json.dumps({"page_size": PAGE, "devices": devices}).encode()
    return b"\0\x06" + struct.pack(">I", len(text)) + text


def cpu(number: int, cr3: int) -> tuple[bytes, dict[str, Any]]:
    """The section of one CPU, and the description of it."""
    fields: list[tuple[str, int, int, bytes]] = [
        ("env.regs", 8, 16, struct.pack(">16Q", *range(100, 116))),
        ("env.eip", 8, 1, struct.pack(">Q", 0xFFFFFFFF81000000 + number)),
        ("env.eflags", 8, 1, struct.pack(">Q", 0x46)),
        ("odd", 3, 1, b"\x7e\x7e\x7e"),
        ("env.segs", 20, 6, b"".join(struct.pack(">IQII", 8 * n, n, 0xFFFFF, 0xA09B00) for n in range(6))),
        ("env.gdt", 20, 1, struct.pack(">IQII", 0, 0xFFFFFE0000001000, 0x7F, 0)),
        *((f"env.cr[{n}]", 8, 1, struct.pack(">Q", one)) for n, one in ((0, 0x80050033), (3, cr3), (4, 0x1020))),
        ("env.efer", 8, 1, struct.pack(">Q", 0xD01)),
    ]
    told = [{"name": name, "size": size} | ({"array_len": n} if n > 1 else {}) for name, size, n, _ in fields]
    inner = {"vmsd_name": "cpu/more", "version": 1, "fields": [{"name": "x", "size": 8}]}
    device = {"name": "cpu", "instance_id": number, "vmsd_name": "cpu", "version": 12, "fields": told}
    device["subsections"] = [inner]
    body = b"".join(raw for *_, raw in fields) + b"\x05" + name(b"cpu/more") + struct.pack(">IQ", 1, 7)
    head = b"\x04" + struct.pack(">I", 40 + number) + name(b"cpu") + struct.pack(">II", number, 12)
    return head + body + b"\x7e" + struct.pack(">I", 40 + number), device


def with_cpus() -> tuple[bytes, list[dict[str, Any]]]:
    cpus = [cpu(0, 0x5000), cpu(1, 0x6000)]
    return stream(entries=ENTRIES) + b"".join(section for section, _ in cpus), [device for _, device in cpus]


def test_cpus(tmp_path: Path) -> None:
    sections, devices = with_cpus()
    (tmp_path / "state").write_bytes(sections + described([{"name": "timer", "fields": 3}, *devices]))
    with open_source(tmp_path / "state") as source:
        assert [(one.cr0, one.cr3, one.cr4, one.efer, one.rip) for one in source.cpus] == [
            (0x80050033, 0x5000, 0x1020, 0xD01, 0xFFFFFFFF81000000),
            (0x80050033, 0x6000, 0x1020, 0xD01, 0xFFFFFFFF81000001),
        ]
        one = source.cpus[0]
        assert (one.general["rax"], one.general["rcx"], one.general["rsp"], one.general["r15"]) == (100, 101, 104, 115)
        assert one.segments["cs"].selector == 8 and one.segments["ds"].base == 3 and one.gdt is not None
        assert (one.gdt.base, one.gdt.limit) == (0xFFFFFE0000001000, 0x7F)
    (tmp_path / "state").write_bytes(sections)
    with open_source(tmp_path / "state") as source:
        assert source.cpus == () and "does not describe its CPUs" in source.notes[0]


def test_a_background_snapshot(tmp_path: Path) -> None:
    """It writes memory while the guest runs on; no section says that RAM has ended, and the devices come then."""
    cpus = [cpu(0, 0x5000), cpu(1, 0x6000)]
    whole = stream(entries=ENTRIES)
    end = whole.index(b"\x03" + struct.pack(">I", 2))
    sections = b"".join(section for section, _ in cpus)
    for cut in (b"", sections, sections + b"\x05"):
        (tmp_path / "state").write_bytes(whole[:end] + cut)
        with pytest.raises(FormatError):
            open_source(tmp_path / "state")
    (tmp_path / "state").write_bytes(whole[:end] + sections + described([told for _, told in cpus]))
    check(tmp_path / "state")
    with open_source(tmp_path / "state") as source:
        assert [(one.cr3, one.rip) for one in source.cpus] == [
            (0x5000, 0xFFFFFFFF81000000), (0x6000, 0xFFFFFFFF81000001)
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", 11),
        ("instance_id", -1),
        ("name", "x" * 300),
        ("fields", [{"name": "a", "size": 1 << 70}]),
        ("fields", [{"size": 8, "array_len": -1}]),
        ("fields", [7]),
        ("subsections", [3]),
        ("subsections", 3),
    ],
)
def test_cpus_that_do_not_fit(tmp_path: Path, key: str, value: object) -> None:
    sections, devices = with_cpus()
    (tmp_path / "state").write_bytes(sections + described([devices[0] | {key: value}, devices[1]]))
    with pytest.raises(FormatError, match="CPU 0 is not where the stream's description of it says"):
        open_source(tmp_path / "state")


def qcow2(states: list[tuple[str, bytes]], disk: int = 1 << 20, bits: int = 12) -> bytes:
    """A disk image with snapshots; the state of each lies behind the disk's bytes, every third cluster packed."""
    size, per = 1 << bits, 1 << bits - 3
    out = bytearray(size)
    first = -(-disk // (size * per))
    rows = b""
    for label, state in states:
        pieces = [state[at : at + size].ljust(size, b"\0") for at in range(0, len(state), size)]
        entries = []
        for number, piece in enumerate(pieces):
            if number % 3 == 2:
                packer = zlib.compressobj(wbits=-12)
                raw = packer.compress(piece) + packer.flush()
                entries.append(1 << 62 | (len(raw) - 1 >> 9) << 62 - (bits - 8) | len(out))
                out += raw.ljust(-(-len(raw) // size) * size, b"\0")
            else:
                entries.append(1 << 63 | len(out) if any(piece) else 0)
                out += piece if any(piece) else b""
        tables = []
        for at in range(0, len(entries), per):
            tables.append(1 << 63 | len(out))
            out += struct.pack(f">{per}Q", *entries[at : at + per], *[0] * (per - len(entries[at : at + per])))
        l1 = len(out)
        out += struct.pack(f">{first + len(tables)}Q", *[0] * first, *tables).ljust(size, b"\0")
        row = struct.pack(">QIHHIIQII", l1, first + len(tables), 1, len(label), 0, 0, 0, 0, 16)
        row += struct.pack(">QQ", len(state), disk) + b"1" + label.encode()
        rows += row + bytes(-len(row) % 8)
    head = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 3, 0, 0, bits, disk, 0, 0, 0, 0, 0, len(states), len(out))
    out[:104] = head + struct.pack(">QQQII", 0, 0, 0, 4, 104)
    return bytes(out) + rows


def test_savevm_in_a_disk_image(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    path.write_bytes(qcow2([("empty", b""), ("old", b"QEVM...."), ("new", stream(entries=ENTRIES))]))
    check(path)
    whole = path.read_bytes()
    with open_source(path) as source:
        assert source.format == "QEMU migration stream, snapshot 'new' in a qcow2 image"
        assert source.notes[0] == "the state of snapshot 'new', the last of 2"
    for size in range(4, len(whole), 997):
        path.write_bytes(whole[:size])
        with pytest.raises(FormatError):
            open_source(path)
    for data, says in (
        (qcow2([]), "without the state of a machine"),
        (qcow2([("one", b"rubbish")]), "no QEMU stream in snapshot 'one'"),
        (whole[:60] + b"\xff" * 4 + whole[64:], "4294967295 snapshots"),
        (whole[:20] + b"\xff" * 4 + whole[24:], "clusters of"),
        (whole[:35] + b"\1" + whole[36:], "encrypted"),
    ):
        path.write_bytes(data)
        with pytest.raises(FormatError, match=says):
            open_source(path)


@pytest.mark.qemu
@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_what_qemu_writes(tmp_path: Path, machine: str, listens: Callable[[Path], bool]) -> None:
    """Bytes that QEMU was told to load, on both sides of 4 GiB, are where it loaded them."""
    if (reason := available("qemu")) is not None:
        pytest.skip(reason)
    data = random.Random(7).randbytes(MIB)
    (tmp_path / "data").write_bytes(data)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "disk", "64M"], check=True)
    command = [
        "qemu-system-x86_64",
        "-accel",
        "tcg",
        "-M",
        machine,
        "-m",
        "4G",
        "-S",
        "-display",
        "none",
        "-nodefaults",
    ]
    places = (0x100000, 0x7FF00000, 0x100000000)
    for at in places:
        command += ["-device", f"loader,file={tmp_path / 'data'},addr={at:#x},force-raw=on"]
    command += [
        "-smp",
        "2",
        "-drive",
        f"file={tmp_path / 'disk'},if=none,id=disk",
        "-device",
        "virtio-blk-pci,drive=disk",
    ]
    child = Child([*command, "-qmp", f"unix:{tmp_path / 'qmp'},server=on,wait=off"], ())
    try:
        deadline = time.monotonic() + 60
        while not listens(tmp_path / "qmp") and time.monotonic() < deadline:
            time.sleep(0.05)
        monitor = QmpClient(str(tmp_path / "qmp"), timeout=60)
        assert not monitor.monitor("savevm one").strip()
        monitor.ask("block-dirty-bitmap-add", node="disk", name="changed")
        monitor.ask("migrate-set-capabilities", capabilities=[{"capability": "dirty-bitmaps", "state": True}])
        monitor.ask("migrate", uri=f"exec:cat > {tmp_path / 'state'}")
        while (state := monitor.ask("query-migrate")["status"]) not in ("completed", "failed"):
            assert time.monotonic() < deadline, state
            time.sleep(0.1)
        registers = parse_info_registers(monitor.monitor("info registers -a"))
        monitor.close()
        assert state == "completed"
    finally:
        child.end()
    for kept in ("state", "disk"):
        with open_source(tmp_path / kept) as source:
            for at in places:
                assert source.memory.read(PhysAddr(at), MIB) == data, hex(at)
            assert source.extents[-1].end == (6 << 30 if machine == "q35" else 5 << 30)
            assert [one.rip for one in source.cpus] == [one.rip for one in registers]
            assert [one.cr0 for one in source.cpus] == [one.cr0 for one in registers] == [0x60000010] * 2
            assert source.cpus[1].segments["cs"] == registers[1].segments["cs"]
