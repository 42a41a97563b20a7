"""Capture Linux hosts with a small guest of their own behind NPT: four and five levels of each, as sparse ELF cores.

    python bench/nested_guest.py linux-image-6.1.0-57-cloud-amd64_6.1.192-3_amd64.deb -o captures

QEMU's TCG has SVM, so `kvm-amd` runs in it; `-cpu max` has LA57, and the host's levels are NPT's. The first process is
`nested_guest.c`, compiled now: it loads KVM, runs the guest to its HLT, and tells what KVM_TRANSLATE and
/proc/self/pagemap say of its addresses. Then QEMU dumps the memory; kept are the VMCB, NPT's tables, the guest's tables
and one page of each of its maps. `NAME.elf.xz` is that, `NAME.facts.json` what was told, the root that
the VMCB names, and where it lies. Needs gcc, cpio, dpkg-deb and QEMU.
"""

from __future__ import annotations

import argparse
import json
import lzma
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fivefold.machine.program import find_program
from fivefold.memory.live.qmp_client import QmpClient

PAGE = 4096
FRAME = (1 << 52) - PAGE
PATIENCE = 120
TOLD, LARGE = 0x8_0000, 0x4000_0000
"""Pages between these are not used by the guest, and left out of the facts."""
SMALL = ("irqbypass.ko", "kvm.ko", "kvm-amd.ko")
# AMD APM volume 2, "VMCB Layout": the control area, and the state-save area from 0x400 on.
NP_ENABLE, N_CR3, SAVED_CR4, SAVED_CR3, SAVED_CR0 = 0x90, 0xB0, 0x548, 0x550, 0x558


def initramfs(package: Path, folder: Path) -> tuple[Path, Path]:
    """The kernel of a Debian package, and an initramfs whose first process is `nested_guest.c`."""
    subprocess.run(["dpkg-deb", "-x", str(package), str(folder / "package")], check=True)
    root = folder / "root"
    root.mkdir()
    for name in SMALL:
        found = next((folder / "package").rglob(f"{name}*"))
        data = found.read_bytes()
        (root / name).write_bytes(lzma.decompress(data) if found.suffix == ".xz" else data)
    source = Path(__file__).with_name("nested_guest.c")
    subprocess.run(["gcc", "-O2", "-static", "-o", str(root / "init"), str(source)], check=True)
    names = "\n".join(sorted(path.name for path in root.iterdir()))
    packed = subprocess.run(
        ["cpio", "-o", "-H", "newc", "--quiet"], cwd=root, input=names.encode(), capture_output=True, check=True
    )
    (folder / "initrd").write_bytes(packed.stdout)
    return next((folder / "package" / "boot").glob("vmlinuz-*")), folder / "initrd"


def run(qemu: list[str], kernel: Path, initrd: Path, host: int, guest: int, core: Path) -> dict[str, list[list[str]]]:
    """Boot, wait for the guest's facts, and dump the memory to *core*."""
    folder = core.parent
    serial, socket = folder / f"serial-{host}-{guest}", folder / f"qmp-{host}-{guest}"
    words = f"console=ttyS0 quiet panic=-1 {'no5lvl ' if host == 4 else ''}-- {'five' if guest == 5 else 'four'}"
    process = subprocess.Popen(
        [
            *qemu,
            *("-accel", "tcg", "-nodefaults", "-display", "none", "-no-reboot", "-M", "q35", "-cpu", "max"),
            *("-m", "256", "-kernel", str(kernel), "-initrd", str(initrd), "-append", words),
            *("-serial", f"file:{serial}", "-qmp", f"unix:{socket},server=on,wait=off"),
        ]
    )
    try:
        until = time.monotonic() + PATIENCE
        while b"fact ready" not in (serial.read_bytes() if serial.exists() else b""):
            if time.monotonic() > until or process.poll() is not None:
                sys.exit(f"the guest is not ready: {serial.read_bytes()[-400:]!a}")
            time.sleep(0.3)
        client = QmpClient(str(socket), timeout=60)
        client.ask("stop")
        client.ask("dump-guest-memory", paging=False, protocol=f"file:{core}")
        client.close()
    finally:
        process.kill()
        process.wait()
    facts: dict[str, list[list[str]]] = {}
    for line in serial.read_text(errors="replace").splitlines():
        if line.startswith("fact "):
            _, name, *rest = line.split()
            facts.setdefault(name, []).append(rest)
    return facts


class Core:
    """QEMU's ELF core: its notes, and pages by physical address."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        at, count = struct.unpack_from("<Q", self.data, 32)[0], struct.unpack_from("<H", self.data, 56)[0]
        self.parts, self.notes = [], b""
        for number in range(count):
            kind, _, offset, _, start, size, _, _ = struct.unpack_from("<IIQQQQQQ", self.data, at + 56 * number)
            if kind == 4:
                self.notes = self.data[offset : offset + size]
            elif kind == 1:
                self.parts.append((start, offset, size))

    def page(self, at: int) -> bytes:
        """The page at physical *at*."""
        for start, offset, size in self.parts:
            if start <= at < start + size:
                return self.data[offset + at - start : offset + at - start + PAGE]
        raise KeyError(hex(at))

    def word(self, at: int) -> int:
        """The word at physical *at*."""
        return int(struct.unpack_from("<Q", self.page(at & -PAGE), at & (PAGE - 1))[0])

    def find_vmcb(self, cr0: int, cr3: int, cr4: int) -> list[int]:
        """Every page that is a VMCB with nested paging and these registers of its guest."""
        found = []
        wanted = struct.pack("<3Q", cr4, cr3, cr0)
        for start, offset, size in self.parts:
            at = self.data.find(wanted, offset, offset + size)
            while at >= 0:
                pa = start + at - offset - SAVED_CR4
                if pa % PAGE == 0 and self.word(pa + NP_ENABLE) & 1:
                    found.append(pa)
                at = self.data.find(wanted, at + 1, offset + size)
        return found

    def tables(self, root: int, levels: int) -> tuple[set[int], dict[int, int]]:
        """The tables at *root*, and the host's address of each page of the guest, in 4 KiB pieces."""
        tables, pages, work = set(), {}, [(root & FRAME, levels, 0)]
        while work:
            table, level, base = work.pop()
            tables.add(table)
            for index, raw in enumerate(struct.unpack("<512Q", self.page(table))):
                first = base + (index << (3 + 9 * level))
                if not raw & 1:
                    continue
                if level > 1 and not raw & 0x80:
                    work.append((raw & FRAME, level - 1, first))
                    continue
                for piece in range(1 << 9 * (level - 1)):
                    pages[first + piece * PAGE] = (raw & FRAME & -PAGE << 9 * (level - 1)) + piece * PAGE
        return tables, pages


def sparse(core: Core, pages: set[int]) -> bytes:
    """An ELF core of *pages* alone, with the notes of *core*."""
    heads, at = [], 64 + 56 * (len(pages) + 1)
    notes_at, at = at, at + len(core.notes)
    heads.append(struct.pack("<IIQQQQQQ", 4, 0, notes_at, 0, 0, len(core.notes), len(core.notes), 4))
    for page in sorted(pages):
        heads.append(struct.pack("<IIQQQQQQ", 1, 6, at, 0, page, PAGE, PAGE, PAGE))
        at += PAGE
    head = core.data[:32] + struct.pack("<QQIHHHHHH", 64, 0, 0, 64, 56, len(heads), 0, 0, 0)
    return head + b"".join(heads) + core.notes + b"".join(core.page(page) for page in sorted(pages))


def capture(core: Core, said: dict[str, list[list[str]]], host: int, guest: int) -> tuple[bytes, dict[str, object]]:
    """The sparse core, and the facts."""
    registers = dict(zip(said["exit"][0][1::2], said["exit"][0][2::2], strict=False))
    cr0, cr3, cr4 = (int(registers[name], 16) for name in ("cr0", "cr3", "cr4"))
    vmcb = core.find_vmcb(cr0, cr3, cr4)
    if len(vmcb) != 1:
        sys.exit(f"{len(vmcb)} pages look like the VMCB")
    root = core.word(vmcb[0] + N_CR3)
    tables, pages = core.tables(root, host)
    translate = [[int(va, 16), int(pa, 16)] for va, pa, valid in said["translate"] if valid == "1"]
    kept = {vmcb[0], *tables} | {pages[gpa & -PAGE] for _, gpa in translate[1:]}
    work = [(cr3, guest)]
    while work:
        table, level = work.pop()
        kept.add(pages[table])
        for raw in struct.unpack("<512Q", core.page(pages[table])):
            if raw & 1 and level > 1 and not raw & 0x80:
                work.append((raw & FRAME, level - 1))
    told = [[int(gpa, 16), int(hpa, 16)] for gpa, hpa, _ in said["page"]]
    facts = {
        "vmcb": vmcb[0], "ncr3": root, "host_levels": host, "guest_levels": guest, "guest_cr3": cr3, "guest_cr4": cr4,
        "translate": translate, "page": [pair for pair in told if not TOLD <= pair[0] < LARGE],
    }  # fmt: skip
    return sparse(core, kept), facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="a linux-image package of Debian, with kvm-amd")
    parser.add_argument("-o", dest="folder", type=Path, required=True)
    parser.add_argument("--qemu", help="a QEMU, or the folder that it is unpacked in")
    asked = parser.parse_args()
    program = find_program(["qemu-system-x86_64"], asked.qemu, "FIVEFOLD_QEMU")
    assert program is not None, "there is no QEMU"
    asked.folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        kernel, initrd = initramfs(asked.package, Path(place))
        for host in (5, 4):
            for guest in (4, 5):
                path = Path(place) / f"core-{host}-{guest}"
                said = run(list(program.command), kernel, initrd, host, guest, path)
                made, facts = capture(Core(path), said, host, guest)
                path.unlink()
                name = f"nested-la{9 * host + 12}-la{9 * guest + 12}"
                (asked.folder / f"{name}.elf.xz").write_bytes(lzma.compress(made, preset=9))
                (asked.folder / f"{name}.facts.json").write_text(json.dumps(facts) + "\n")
                print(f"{name}: VMCB {facts['vmcb']:#x}, root {facts['ncr3']:#x}, {len(made)} bytes", flush=True)


if __name__ == "__main__":
    main()
