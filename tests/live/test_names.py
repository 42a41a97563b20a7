"""Names of a real Linux, held against what that Linux says of itself: /proc/kallsyms and ps.

The guest wrote both on a disk before it was stopped; names are read from its memory alone, as a raw image too.
"""

from __future__ import annotations

import json
import os
import random
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fivefold.arch import Mapped, translate
from fivefold.memory.live.kcore import open_kcore
from fivefold.survey.space import Space, open_space
from fivefold.units import PhysAddr, VirtAddr

pytestmark = pytest.mark.qemu

MAIN = "from fivefold.cli.main import main; main()"
WINDOW = 0xFFFF_FFFF_8000_0000
_ADDRESS = re.compile(r"([0-9a-f]{16}) ([A-Za-z]) (\S+)(?:\t\[(\S+)\])?")


def fivefold(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, words)], capture_output=True, text=True, check=False, timeout=300
    )


@pytest.fixture(scope="module")
def told(guest: Any) -> list[str]:
    """/proc/kallsyms, /proc/modules and ps, as the guest wrote them."""
    return ("\n" + Path(guest.told).read_bytes().decode().rstrip("\0")).split("\n===")[:3]


@pytest.fixture(scope="module")
def theirs(told: list[str]) -> dict[int, set[tuple[str, str | None]]]:
    """Names and modules by address."""
    found: dict[int, set[tuple[str, str | None]]] = {}
    for address, _, name, module in _ADDRESS.findall(told[0]):
        if int(address, 16) >= WINDOW:
            found.setdefault(int(address, 16), set()).add((name, module or None))
    assert len(found) > 50_000
    return found


@pytest.fixture(scope="module")
def space(guest: Any) -> Iterator[Space]:
    with open_space(f"qmp:{guest.held}") as found:
        yield found


def test_every_symbol_is_the_kernels(space: Space, theirs: dict[int, set[tuple[str, str | None]]]) -> None:
    """All of them, those of the module too, and no other."""
    ours: dict[int, set[tuple[str, str | None]]] = {}
    for span in space.symbols.spans:
        for one in span:
            ours.setdefault(one.address, set()).add((one.name, one.module))
    assert any(module == "dummy" for names in ours.values() for _, module in names)
    assert ours == theirs


def test_addresses_on_20_pages(space: Space, theirs: dict[int, set[tuple[str, str | None]]]) -> None:
    """Each function's first byte and one within it, on pages drawn at random."""
    draw = random.Random(space.levels)
    for page in draw.sample(sorted({at & ~0xFFF for at in theirs}), 20):
        for at in (one for one in sorted(theirs) if one & ~0xFFF == page):
            assert space.symbols.at(at) in {name + (f" [{module}]" if module else "") for name, module in theirs[at]}
            if at + 1 not in theirs and (name := space.symbols.at(at + 1)) is not None:
                assert name.partition("+")[0] in {name for name, _ in theirs[at]} and "+0x1" in name


def plain(name: str) -> str:
    return re.sub(r"(kworker/u?\d+:\d+H?)[-+].*", r"\1", name)[:15]


def test_who_is_who_from_a_raw_image(guest: Any, told: list[str]) -> None:
    """Of the memory alone, without a register or a note: the processes are those of ps, each with its root."""
    done = fivefold("roots", guest.ram, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    ours = {one["pid"]: one["name"] for one in found["processes"]}
    lines = [line.split(None, 1) for line in told[2].splitlines() if line.split()[:1] not in ([], ["PID"])]
    # Those that wrote the list are gone; workers did other work since, and busybox' ps cuts names.
    theirs = {int(pid): name.strip() for pid, name in lines}
    assert len(ours) > 20 and ours.keys() <= theirs.keys()
    assert all(plain(theirs[pid]) == plain(name) or pid == 1 for pid, name in ours.items()), (ours, theirs)
    assert any(len(name) > 15 for name in ours.values())
    assert {name for pid, name in theirs.items() if pid not in ours} <= {"init", "busybox", "1", "cat", "ps", "dd"}
    roots = {root["root"]: {one["pid"] for one in root["processes"] if not one["borrowed"]} for root in found["roots"]}
    assert {1} <= set().union(*roots.values()) and all(
        one["pid"] in roots[one["root"]] for one in found["processes"] if one["root"] and not one["borrowed"]
    )
    assert "init_mm" in {root["label"] for root in found["roots"]}
    assert found["symbols_known_from"] and found["processes_known_from"]


def test_explain_names_the_function_of_a_fault(
    guest: Any, space: Space, theirs: dict[int, set[tuple[str, str | None]]], tmp_path: Path
) -> None:
    """A page fault at an address of the kernel, told by the memory alone."""
    at = space.symbols.address("schedule") or 0
    registers = f"RIP={at + 4:016x} RFL=00000046 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=0"
    log = tmp_path / "log"
    head = (
        f"     0: v=0e e=0000 i=0 cpl=0 IP=0010:{at + 4:016x} pc={at + 4:016x} SP=0018:{at:016x} CR2=0000000000000008"
    )
    log.write_text(f"{head}\n{registers}\nCR0=80050033 CR2=0000000000000008 CR3={space.root.value:016x} CR4=00001020\n")
    done = fivefold("explain", log, "--memory", guest.ram)
    assert "schedule+0x4" in done.stdout, done.stdout + done.stderr


def test_explain_names_where_a_live_guest_is(guest: Any, theirs: dict[int, set[tuple[str, str | None]]]) -> None:
    """The function of RIP, and those that called it, each with a name and an offset of the guest's own list."""
    done = fivefold("explain", f"qmp:{guest.qmp}", "--json")
    told = " ".join(json.loads(done.stdout)["remarks"])
    rip = int(re.search(r"RIP=([0-9a-f]{16})", guest.monitor.monitor("info registers"))[1], 16)  # type: ignore[index]
    start = max(at for at in theirs if at <= rip)
    here = re.search(r"CPU 0 is at RIP 0x([0-9a-f]+), in (\w+)", told)
    assert here is not None and int(here[1], 16) == rip and here[2] in {name for name, _ in theirs[start]}, told
    frames = re.search(r"on the stack of CPU 0, behind calls: (.*)", told)
    assert frames is not None, told
    called = {name for names in theirs.values() for name, _ in names}
    assert {one.partition("+")[0] for one in frames[1].split(", ")} <= called


def test_symbols_from_a_file(guest: Any, space: Space, told: list[str], tmp_path: Path) -> None:
    """The guest's own list, moved as if it had been made by the build, names the same; another kernel's is refused."""
    path = tmp_path / "System.map"
    slide = (space.bases.kernel_text.value or 0) - 0xFFFF_FFFF_8100_0000
    rows = [
        f"{int(at, 16) - slide:016x} {kind} {name}"
        for at, kind, name, module in _ADDRESS.findall(told[0])
        if int(at, 16) >= WINDOW and not module
    ]
    path.write_text("\n".join(rows))
    at = space.symbols.address("schedule")
    done = fivefold(
        "walk", guest.ram, f"{(at or 0) + 4:x}", "--cr3", f"{space.root.value:x}", "--symbols", path, "--json"
    )
    walked = json.loads(done.stdout)
    assert walked["walks"][0]["symbol"] == "schedule+0x4"
    assert walked["symbols_known_from"].startswith(str(path))
    path.write_text(
        "\n".join(row.replace(" linux_banner", " other").replace(" _etext", " linux_banner") for row in rows)
    )
    done = fivefold("walk", guest.ram, "0", "--cr3", f"{space.root.value:x}", "--symbols", path)
    assert done.returncode == 2 and "expected the symbols of this kernel" in done.stderr


HEADERS = 64 << 10
IMAGE = 0xFFFF_FFFF_8000_0000


@pytest.fixture
def kcore(guest: Any) -> Iterator[str]:
    """The guest's /proc/kcore as it was: as long as the address space, with holes for all but the direct map."""
    disk = Path(guest.kcore)
    with disk.open("rb") as copied:
        head = copied.read(HEADERS)
        fd = os.memfd_create("kcore")
        os.pwrite(fd, head, 0)
        (count,) = struct.unpack_from("<H", head, 56)
        for number in range(count):
            kind, _, offset, va, pa, size, _, _ = struct.unpack_from("<IIQQQQQQ", head, 64 + 56 * number)
            if kind == 1 and va < IMAGE and pa < disk.stat().st_size:
                copied.seek(HEADERS + pa)
                os.pwrite(fd, copied.read(size), offset)
    yield f"/proc/self/fd/{fd}"
    os.close(fd)


def test_a_kernels_own_memory_by_its_kcore(guest: Any, space: Space, kcore: str) -> None:
    """Root, levels and release by its notes, its code byte for byte, and addresses that lead where they do outside."""
    with open_kcore(kcore) as source:
        assert source.vmcoreinfo["OSRELEASE"].startswith(("6.", "7.")) and source.cpus == ()
        inside = Space(source)
        assert inside.levels == guest.levels
        start, end = (space.symbols.address(name) or 0 for name in ("_stext", "_etext"))
        draw = random.Random(guest.levels)
        for va in (draw.randrange(start, end) for _ in range(200)):
            here, there = (translate(one.tables, VirtAddr(va)) for one in (inside, space))
            assert isinstance(here, Mapped) and isinstance(there, Mapped) and here.pa == there.pa, hex(va)
            page = PhysAddr(here.pa & ~0xFFF)
            assert source.memory.read(page, 4096) == space.source.memory.read(page, 4096), hex(va)
        names = {name: inside.symbols.address(name) for name in ("schedule", "init_task", "linux_banner")}
        assert names == {name: space.symbols.address(name) for name in names} and None not in names.values()
        assert {1} <= {process.pid for process in inside.names.processes.processes}
