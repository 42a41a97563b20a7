"""Dumps that makedumpfile itself writes, of a booted Linux: is each page that they have the guest's own?

    FIVEFOLD_FETCH_GUEST=1 python bench/makedumpfile.py [--levels 4|5]     # needs makedumpfile, and QEMU

The guest is that of the live tests, stopped. Its memory is put into an ELF core with the VMCOREINFO that lies in it,
which makedumpfile then packs in each of its ways. Status 1 where a page differs, or root or release are not found.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from fivefold.memory import open_source
from fivefold.survey.space import Space, open_space
from fivefold.units import PhysAddr

TESTS: Final = Path(__file__).parents[1] / "tests"
WAYS: Final = (
    "-E -d 0",
    "-c -d 0",
    "-l -d 0",
    "-p -d 0",
    "-z -d 0",
    "-c -d 31",
    "-z -d 31",
    "-F -c -d 0",
    "-F -l -d 31",
)
LOW: Final = 0xA_0000
HIGH: Final = 0x10_0000
STEP: Final = 1 << 16


def note(owner: bytes, kind: int, data: bytes) -> bytes:
    """An ELF note."""
    name = owner + b"\0"
    head = struct.pack("<III", len(name), len(data), kind)
    return head + name + bytes(-len(name) % 4) + data + bytes(-len(data) % 4)


def core(ram: bytes, page_offset: int) -> bytes:
    """An ELF core of *ram* that says of itself what Linux left in it for that."""
    texts = [ram[match.start() : ram.find(b"\0", match.start())] for match in re.finditer(rb"OSRELEASE=\d", ram)]
    notes = note(b"CORE", 1, bytes(336)) + note(b"VMCOREINFO", 0, max(texts, key=len))
    rows = [(4, 0, 0x1000, 0, 0, len(notes), len(notes), 0)]
    for start, end in ((0, LOW), (HIGH, len(ram))):
        rows.append((1, 7, 0x1_0000 + start, page_offset + start, start, end - start, end - start, 0))
    ident = b"\x7fELF\2\1\1".ljust(16, b"\0")
    head = struct.pack("<16sHHIQQQIHHHHHH", ident, 4, 62, 1, 0, 64, 0, 0, 64, 56, len(rows), 0, 0, 0)
    head += b"".join(struct.pack("<IIQQQQQQ", *row) for row in rows)
    return (head.ljust(0x1000, b"\0") + notes).ljust(0x1_0000, b"\0") + ram


def packed(place: Path, way: str) -> Path | None:
    """The dump that makedumpfile makes of the core with the options *way*; None where it was built without it."""
    path = place / "packed"
    path.unlink(missing_ok=True)
    words = ["makedumpfile", *way.split(), str(place / "core")]
    if "-F" in words:
        with path.open("wb") as out:
            done = subprocess.run(words, stdout=out, stderr=subprocess.PIPE, check=False, text=True)
    else:
        done = subprocess.run([*words, str(path)], capture_output=True, check=False, text=True)
    return path if not done.returncode else None


def judged(path: Path, ram: bytes, levels: int) -> tuple[str, bool]:
    """What became of it."""
    with open_source(path) as source:
        count = wrong = 0
        for extent in source.extents:
            for at in range(extent.start, extent.end, STEP):
                size = min(STEP, extent.end - at)
                count += size >> 12
                wrong += source.memory.read(PhysAddr(at), size) != ram[at : at + size]
        space = Space(source)
        release = source.vmcoreinfo.get("OSRELEASE", "none")
        told = f"{source.format}: {count} pages, {wrong} differ; {space.levels} levels, Linux {release}"
        return told, not wrong and count > 0 and space.levels == levels


def main() -> int:
    """A row for each way."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--levels", type=int, choices=(4, 5), default=5)
    levels = parser.parse_args().levels
    spec = importlib.util.spec_from_file_location("live_guest", TESTS / "live" / "conftest.py")
    assert spec is not None and spec.loader is not None
    tests = importlib.util.module_from_spec(spec)
    sys.modules["live_guest"] = tests
    spec.loader.exec_module(tests)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        package = tests.find_package(place)
        (place / "guest").mkdir()
        with tests.started_guest(package, tests.write_initrd(package, place), place / "guest", levels) as guest:
            ram = guest.ram.read_bytes()
            with open_space(str(guest.ram)) as space:
                page_offset = space.bases.page_offset.value or 0
        (place / "core").write_bytes(core(ram, page_offset))
        for way in WAYS:
            path = packed(place, way)
            told, fits = ("not built into this makedumpfile", True) if path is None else judged(path, ram, levels)
            print(f"makedumpfile {way:12} {told}", flush=True)
            failed += not fits
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
