"""The same memory for everyone: raw, and as a core for those who want one, with what QEMU says of it."""

from __future__ import annotations

import importlib.util
import json
import lzma
import mmap
import re
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, Final

from fivefold.memory import Source
from fivefold.survey.space import Space, open_space

TESTS: Final = Path(__file__).parents[1] / "tests"
GUESTS: Final = TESTS / "data" / "guests"
CAPTURES: Final = ("debian-la48-nokaslr-6G-pc", "plain-la48-kaslr", "plain-la57-kaslr", "kasan-la48-kaslr")
DUMP_SECONDS: Final = 60
PAGE: Final = 4096
KERNEL_IMAGE: Final = 0xFFFF_FFFF_8000_0000
ROOT_AT: Final = KERNEL_IMAGE + PAGE
"""Where the root of a capture is said to be; then phys_base is not 0, which drgn would take for not known."""

Leaves = set[tuple[int, int]]
_LEAF: Final = re.compile(r"([0-9a-f]{16}): ([0-9a-f]{16}) [XGPDACTUW-]{9}")
_NOTE: Final = re.compile(rb"\x0b\0\0\0(....)\0\0\0\0VMCOREINFO\0\0(?=OSRELEASE=)", re.DOTALL)


@dataclass(frozen=True)
class Image:
    """One guest's memory in two files, and the facts that a peer is given."""

    name: str
    levels: int
    root: int
    root_at: int
    """The virtual address of the root, which drgn goes by."""
    raw: Path
    """Byte n is physical address n."""
    core: Path
    vmcoreinfo: str
    ram: list[range]
    leaves: Leaves | None
    """Each leaf's virtual and physical address by QEMU's ``info tlb``, None where that was not kept."""
    full: bool
    """Whether it holds all of memory; a capture has tables and zeros."""

    def open(self) -> Space:
        """Our own reading of the raw image, told the root and levels as the peers are."""
        return open_space(str(self.raw), cr3=self.root, levels=self.levels)

    def request(self, place: Path, addresses: list[int], readable: list[int]) -> Path:
        """What a peer is asked, as a file in *place*."""
        asked = {
            "raw": str(self.raw),
            "core": str(self.core),
            "root": self.root,
            "root_at": self.root_at,
            "vmcoreinfo": self.vmcoreinfo,
            "addresses": addresses,
            "readable": readable,
        }
        path = place / "request.json"
        path.write_text(json.dumps(asked))
        return path


def leaves_in(text: str) -> Leaves:
    """What QEMU's ``info tlb`` printed."""
    return {(int(va, 16), int(pa, 16)) for va, pa in _LEAF.findall(text)}


def captured(name: str, place: Path) -> Image:
    """A capture of tables: raw with its holes as zeros, and a core with the same bytes."""
    facts = json.loads((GUESTS / f"{name}.facts.json").read_text())
    ram = [range(int(r["start"], 16), int(r["start"], 16) + int(r["size"], 16)) for r in facts["ram"]]
    with open_space(str(GUESTS / f"{name}.elf.xz")) as space:
        root, levels = space.root.value, space.levels
        raw, core = place / f"{name}.raw", place / f"{name}.core"
        with raw.open("wb") as file:
            _fill(file, 0, space.source, ram)
        with core.open("wb") as file:
            file.write(core_head(ram))
            _fill(file, PAGE, space.source, ram)
    listing = GUESTS / f"{name}.info-tlb.txt.xz"
    leaves = leaves_in(lzma.decompress(listing.read_bytes()).decode()) if listing.exists() else None
    return Image(name, levels, root, ROOT_AT, raw, core, vmcoreinfo_of(root, levels), ram, leaves, full=False)


def _fill(file: BinaryIO, offset: int, source: Source, ram: list[range]) -> None:
    for bank in source.memory.banks():
        file.seek(offset + bank.start)
        file.write(bank.data)
    file.truncate(offset + ram[-1].stop)


def core_head(ram: list[range]) -> bytes:
    """An ELF core's first page: one segment for each range of RAM, as QEMU's dumps have them."""
    head = b"\x7fELF\2\1\1" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, len(ram), 0, 0, 0)
    for part in ram:
        head += struct.pack("<IIQQQQQQ", 1, 0, PAGE + part.start, 0, part.start, len(part), len(part), 0)
    return head.ljust(PAGE, b"\0")


def vmcoreinfo_of(root: int, levels: int) -> str:
    """The least that drgn must be told of a capture, which has only tables: where the root is, and how many levels."""
    facts = {
        "OSRELEASE": "6.1",
        "PAGESIZE": PAGE,
        "NUMBER(phys_base)": root - PAGE,
        "SYMBOL(swapper_pg_dir)": f"{ROOT_AT:x}",
        "NUMBER(pgtable_l5_enabled)": int(levels == 5),
    }
    return "".join(f"{name}={value}\n" for name, value in facts.items())


class NoGuestError(Exception):
    """Why there is no guest."""


@contextmanager
def live(levels: int, place: Path) -> Iterator[Image]:
    """A Linux that is booted for this, the one of the tests in ``tests/live``; it stands still until the block ends.

    Raises `NoGuestError` where it cannot be had.
    """
    tests, missing = _live_tests()
    here = place / f"live{levels}"
    here.mkdir()
    try:
        package = tests.find_package(here)
        with tests.started_guest(package, tests.write_initrd(package, place), here, levels) as guest:
            yield _dumped(guest, here)
    except missing as reason:
        raise NoGuestError(str(reason)) from reason


def _live_tests() -> tuple[ModuleType, tuple[type[BaseException], ...]]:
    """What starts the guest for the tests, and what it raises where it cannot."""
    try:
        import pytest
    except ImportError as error:
        raise NoGuestError(f"{error.name} is not installed, which what starts the guest needs") from error
    spec = importlib.util.spec_from_file_location("live_guest", TESTS / "live" / "conftest.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for their names
    spec.loader.exec_module(module)
    return module, (pytest.skip.Exception, pytest.fail.Exception)


def _dumped(guest: Any, here: Path) -> Image:
    """The memory of a guest that stands still: the file that QEMU keeps it in, and QEMU's own dump."""
    core = here / "core"
    with guest.monitor.patience(DUMP_SECONDS):
        guest.monitor.ask("dump-guest-memory", paging=False, protocol=f"file:{core}")
        leaves = leaves_in(guest.monitor.monitor("info tlb"))
    with open_space(str(core)) as space:
        root, levels, page_offset = space.root.value, space.levels, space.bases.page_offset.value
        ram = [range(extent.start, extent.end) for extent in space.source.memory.extents]
    assert page_offset is not None
    name, told = f"live Linux, {guest.levels} levels", _note(guest.ram)
    return Image(name, levels, root, page_offset + root, guest.ram, core, told, ram, leaves, full=True)


def _note(ram: Path) -> str:
    """The VMCOREINFO that Linux keeps in memory for dumps.

    QEMU's dump has it only if the guest loaded the driver that tells QEMU where it is.
    """
    with ram.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
        found = _NOTE.search(memory)
        if found is None:
            raise NoGuestError("its kernel keeps no VMCOREINFO note")
        size = int.from_bytes(found[1], "little")
        return memory[found.end() : found.end() + size].decode()
