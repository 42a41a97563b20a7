"""Files that virtual machine monitors save machines in, made field by field from the formats' public descriptions.

Each writer gets pages by physical address, ascending, and registers by name; what it cannot hold it leaves out. The
tests load this module through a fixture, `bench/fuzz.py` and `integrations/volatility3/bench/witness.py` by its path.
"""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

PAGE = 4096
MIB = 1 << 20
PAGES = {0x1000: b"\x11" * PAGE, 0x2000: b"\x22" * PAGE, 0x1_0000_0000: bytes(range(256)) * 16}
REGISTERS = {"cr0": 0x80050033, "cr2": 0x7000, "cr3": 0x1234000, "cr4": 0x1020, "efer": 0xD01}
REGISTERS |= {"rip": 0xFFFFFFFF81000010, "rsp": 0xFFFFC90000003F00, "rflags": 0x246, "rax": 7}


def runs(pages: dict[int, bytes]) -> list[tuple[int, bytes]]:
    """Pages that follow on each other, together."""
    found: list[tuple[int, bytes]] = []
    for pa, data in sorted(pages.items()):
        if found and found[-1][0] + len(found[-1][1]) == pa:
            found[-1] = found[-1][0], found[-1][1] + data
        else:
            found.append((pa, data))
    return found


def note(owner: bytes, kind: int, data: bytes) -> bytes:
    name = owner + b"\0"
    padded = data + bytes(-len(data) % 4)
    return struct.pack("<III", len(name), len(data), kind) + name + bytes(-len(name) % 4) + padded


def virtualbox(pages: dict[int, bytes], registers: dict[str, int] = REGISTERS, *, magic: int = 0xC01AC0DE) -> bytes:
    """As ``VBoxManage debugvm NAME dumpvmcore`` writes it, for one CPU."""
    names = ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)), "rip", "rsp", "rbp", "rflags"]
    cpu = struct.pack("<18Q", *(registers.get(name, 0) for name in names))
    for number in range(6):
        cpu += struct.pack("<QIIHHI", number, 0xFFFFF, 0xA09B, 8 * number, 0, 0)
    cpu += struct.pack("<4Q64x", *(registers[name] for name in ("cr0", "cr2", "cr3", "cr4")))
    cpu += struct.pack("<QIIQII", 0x5000, 0x7F, 0, 0x6000, 0xFFF, 0) + 2 * struct.pack("<QIIHHI", 9, 10, 11, 12, 0, 0)
    cpu += struct.pack("<24xQ", registers["efer"]) + bytes(80)
    core = struct.pack("<IIIIII", magic, 0x10006, 24, 0x70000, 1, 1)
    notes = note(b"VBCORE", 0xB00, core) + note(b"VBCPU", 0xB01, cpu)
    segments = runs(pages)
    at = 64 + 56 * (len(segments) + 1)
    headers, body = struct.pack("<IIQQQQQQ", 4, 4, at, 0, 0, len(notes), len(notes), 0), notes
    for pa, data in segments:
        headers += struct.pack("<IIQQQQQQ", 1, 7, at + len(body), pa, pa, len(data), len(data), PAGE)
        body += data
    ident = b"\x7fELF\2\1\1".ljust(16, b"\0")
    head = struct.pack("<16sHHIQQQIHHHHHH", ident, 4, 62, 1, 0, 64, 0, 0, 64, 56, len(segments) + 1, 0, 0, 0)
    return head + headers + body


def xen_core(
    pages: dict[int, bytes], registers: dict[str, int] = REGISTERS, *, is_pv: bool = False, cpus: int = 1
) -> bytes:
    """As ``xl dump-core`` writes it; of a PV guest its frames are the machine's. CPU N has a CR3 of N pages more."""
    names = ["r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"]
    contexts = b""
    for cpu in range(cpus):
        context = bytearray(5168)
        struct.pack_into(
            "<15Q8xQ8xQQ", context, 520, *(registers.get(name, 0) for name in [*names, "rip", "rflags", "rsp"])
        )
        control = registers["cr0"], 0, registers["cr2"], registers["cr3"] + cpu * PAGE, registers["cr4"], 0, 0, 0
        struct.pack_into("<8Q", context, 4984, *control)
        contexts += context
    frames = [pa // PAGE for pa in sorted(pages)]
    if is_pv:
        table = b"".join(struct.pack("<QQ", number, frame) for number, frame in enumerate(frames))
    else:
        table = struct.pack(f"<{len(frames)}Q", *frames)
    header = note(b"Xen", 0x2000001, struct.pack("<4Q", 0xF00FEBED if is_pv else 0xF00FEBEE, cpus, len(frames), PAGE))
    parts = {
        "": b"",
        ".shstrtab": b"",
        ".note.Xen": header + note(b"Xen", 0x2000003, struct.pack("<Q", 1)),
        ".xen_prstatus": contexts,
        ".xen_p2m" if is_pv else ".xen_pfn": table,
        ".xen_pages": b"".join(data for _, data in sorted(pages.items())),
    }
    parts[".shstrtab"] = b"".join(name.encode() + b"\0" for name in parts)
    at, body, sections, text = 64 + 64 * len(parts), b"", b"", 0
    for name, data in parts.items():
        offset = at + len(body) if name else 0
        sections += struct.pack("<IIQQQQIIQQ", text, 1 if name else 0, 0, 0, offset, len(data), 0, 0, 8, 0)
        body, text = body + data, text + len(name) + 1
    ident = b"\x7fELF\2\1\1".ljust(16, b"\0")
    return struct.pack("<16sHHIQQQIHHHHHH", ident, 4, 62, 1, 0, 0, 64, 0, 64, 0, 0, 64, len(parts), 1) + sections + body


def sregs(registers: dict[str, int] = REGISTERS) -> bytes:
    """KVM's special registers."""
    raw = b"".join(struct.pack("<QIHBBBBBBBBBB", n, 0xFFFFF, 8 * n, 11, 1, 0, 0, 1, 0, 1, 0, 0, 0) for n in range(8))
    raw += struct.pack("<QH6xQH6x", 0x5000, 0x7F, 0x6000, 0xFFF)
    words = [registers[name] for name in ("cr0", "cr2", "cr3", "cr4")]
    return raw + struct.pack("<7Q32x", *words, 0, registers["efer"], 0xFEE00900)


def regs(registers: dict[str, int] = REGISTERS) -> bytes:
    """KVM's general registers."""
    names = ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", *(f"r{n}" for n in range(8, 16)), "rip", "rflags"]
    return struct.pack("<18Q", *(registers.get(name, 0) for name in names))


def cloud_hypervisor(
    pages: dict[int, bytes], registers: dict[str, int] = REGISTERS, *, way: str = "plain"
) -> dict[str, bytes]:
    """A snapshot's files; the state is plain JSON, or JSON in a text or a list of bytes, as *way* says."""
    table = [{"gpa": pa, "length": len(data)} for pa, data in runs(pages)]
    memory: Any = {"memory_ranges": {"data": table}, "guest_ram_mappings": [], "current_ram": 1 << 30}
    special: Any = {name: registers[name] for name in ("cr0", "cr2", "cr3", "cr4", "efer")}
    special["cs"] = {"base": 0, "limit": 0xFFFFFFFF, "selector": 16}
    general: Any = {"rip": registers["rip"], "rflags": registers["rflags"], "rax": registers["rax"]}
    if way == "bytes":
        special, general = list(sregs(registers)), list(regs(registers))
    cpu: Any = {"Kvm": {"cpuid": [], "regs": general, "sregs": special}}
    if way == "text":
        memory, cpu = json.dumps(memory), json.dumps(cpu)
    elif way == "bytes":
        memory, cpu = list(json.dumps(memory).encode()), list(json.dumps(cpu).encode())
    state = {
        "snapshots": {
            "cpu-manager": {"snapshots": {"0": {"snapshot_data": {"state": cpu}}}},
            "memory-manager": {"snapshots": {}, "snapshot_data": {"state": memory}},
        }
    }
    data = b"".join(data for _, data in runs(pages))
    return {"config.json": b"{}", "state.json": json.dumps(state).encode(), "memory-ranges": data}


def firecracker(
    pages: dict[int, bytes], registers: dict[str, int] = REGISTERS, *, way: str = "old"
) -> dict[str, bytes]:
    """State and memory; regions with their offsets (``old``), without (``plain``), or with flags (``flags``)."""
    list_of = runs(pages)
    regions, at = struct.pack("<Q", len(list_of)), 0
    for pa, data in list_of:
        regions += struct.pack("<QQ", pa - list_of[0][0], len(data))
        regions += {"old": struct.pack("<Q", at), "plain": b"", "flags": struct.pack("<IQ", 0, 1) + b"\1"}[way]
        at += len(data)
    state = struct.pack("<Q", 0x0710_1984_8664_0000 | (3 if way == "old" else 0)) + b"\5\0\0\0\0\0\0\x001.2.3"
    state += struct.pack("<QB", 128, 0) + regions + b"cpu" * 5
    between = b"" if way == "old" else struct.pack("<Q", 312)
    state += regs(registers) + between + sregs(registers) + bytes(40)
    return {"vmstate": state + struct.pack("<Q", zlib.crc32(state)), "mem": b"".join(data for _, data in list_of)}


def vmware(pages: dict[int, bytes]) -> dict[str, bytes]:
    """A ``.vmss`` with a map of regions, and the ``.vmem`` that belongs beside it."""
    rows = runs(pages)

    def tag(name: str, value: int, *indices: int) -> bytes:
        head = bytes([len(indices) << 6 | 4, len(name)]) + name.encode()
        return head + b"".join(struct.pack("<I", one) for one in indices) + struct.pack("<I", value)

    tags, at = tag("regionsCount", len(rows)), 0
    for number, (pa, data) in enumerate(rows):
        tags += tag("regionPPN", pa // PAGE, number) + tag("regionPageNum", at, number)
        tags += tag("regionSize", len(data) // PAGE, number)
        at += len(data) // PAGE
    head = struct.pack("<4sII64sQQ", b"\xd2\xbe\xd2\xbe", 8, 1, b"memory", 92, len(tags) + 2)
    return {"guest.vmss": head + tags + b"\0\0", "guest.vmem": b"".join(data for _, data in rows)}


def pack_block(block: bytes) -> bytes:
    """A mebibyte as Hyper-V packs it: pages of one pattern filled, some as plain LZ77, others as they are."""
    out = b""
    for number in range(0, len(block), PAGE):
        page = block[number : number + PAGE]
        if page == page[:8] * (PAGE // 8):
            out += struct.pack("<I", 0xFFFFFFFE) + page[:8]
        elif page == page[:256] * 16:
            packed = repeated(page[:256], PAGE)
            out += struct.pack("<I", len(packed)) + packed
        else:
            out += struct.pack("<I", PAGE) + page
    return out + struct.pack("<I", 0xFFFFFFFF)


def repeated(head: bytes, size: int) -> bytes:
    """*head* over and over, *size* bytes in all, as plain LZ77: literals, then one long match."""
    out, at = b"", 0
    while at + 32 <= len(head):
        out += bytes(4) + head[at : at + 32]
        at += 32
    length = size - len(head) - 3
    return out + struct.pack("<I", 1 << 31) + struct.pack("<HBBH", (len(head) - 1) << 3 | 7, 15, 255, length)


def hyperv(pages: dict[int, bytes], *, is_packed: bool = False) -> bytes:
    """A saved state with two headers, two tables of keys, blocks of a mebibyte, and runs of them."""
    blocks: dict[int, bytearray] = {}
    for pa, data in pages.items():
        blocks.setdefault(pa // MIB, bytearray(MIB))[pa % MIB : pa % MIB + len(data)] = data
    numbers = sorted(blocks)
    runs_of, first = [], 0
    for index, number in enumerate(numbers):
        if index and numbers[index - 1] + 1 == number:
            runs_of[-1][1] += 1
        else:
            runs_of.append([number, 1, index])
    out = bytearray(8 * PAGE)
    head = struct.pack("<IIHIIIIQQI", 0x01282014, 0, 5, 0x400, 0, 0, PAGE, 0x3000, PAGE, 0)
    head = head[:4] + struct.pack("<I", zlib.crc32(head)) + head[8:]
    out[: len(head)] = out[PAGE : PAGE + len(head)] = head
    keys, places = b"", b""
    for index, (number, count, first) in enumerate(runs_of):
        value = struct.pack("<IIQQQIIQ", 3, 0, count * 256, first * 256, number * 256, 0, 0, 0)
        keys += entry(b"RamMemoryBlock%d" % index, struct.pack("<I", len(value)) + value, 0)
    for index, number in enumerate(numbers):
        raw = pack_block(bytes(blocks[number])) if is_packed else bytes(blocks[number])
        places += entry(b"RamBlock%d" % index, struct.pack("<IQ", len(raw), len(out)), 1)
        out += raw.ljust(-(-len(raw) // PAGE) * PAGE, b"\0")
    for at, sequence, rows in ((4 * PAGE, 1, keys), (6 * PAGE, 2, places)):
        table = struct.pack("<HHH", 2, sequence, sequence)
        table += struct.pack("<I", zlib.crc32(table + bytes(4))) + rows
        out[at : at + len(table)] = table
    return bytes(out)


def entry(name: bytes, data: bytes, flags: int) -> bytes:
    """An entry of a table of keys."""
    size = 21 + len(name) + 1 + len(data)
    return struct.pack("<BBIHIIIB", 7, flags, size, 0, 0, 0, 1, len(name) + 1) + name + b"\0" + data
