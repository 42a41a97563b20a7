"""A real Linux under QEMU, read while it stands still: what we say against what QEMU says."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fivefold.arch import FETCH, READ, WRITE, Allowed, ControlState, Flag, Mapped, access
from fivefold.integrations.gdb_line import gdb_line
from fivefold.machine.program import find_program
from fivefold.memory import open_source
from fivefold.survey.audit.all_roots import audit_all_roots
from fivefold.survey.guest.info import About
from fivefold.survey.guest.roots import find_roots
from fivefold.survey.scan.scan_result import ALL_FLAGS, Contiguity, expand_leaves
from fivefold.survey.space import Space, open_space
from fivefold.units import PhysAddr, VirtAddr

pytestmark = pytest.mark.qemu

MAIN = "from fivefold.cli.main import main; main()"
WAYS = ("file", "process", "pmemsave")
_TLB = re.compile(r"([0-9a-f]{16}): ([0-9a-f]{16}) ([XGPDACTUW-]{9})")
_LETTERS = ((63, "X"), (8, "G"), (7, "P"), (6, "D"), (5, "A"), (4, "C"), (3, "T"), (2, "U"), (1, "W"))


@pytest.fixture(scope="module")
def space(guest: Any) -> Iterator[Space]:
    """The address space of CPU 0."""
    with open_space(f"qmp:{guest.held}") as found:
        yield found


def test_mode_and_bases(guest: Any, space: Space) -> None:
    assert space.levels == guest.levels
    assert space.source.live and not space.source.torn
    bases = space.bases
    assert None not in (bases.page_offset.value, bases.vmalloc.value, bases.vmemmap.value, bases.phys_base.value)
    low = {5: 0xFF11_0000_0000_0000, 4: 0xFFFF_8880_0000_0000}[guest.levels]
    assert (bases.page_offset.value or 0) >= low


def test_info_tlb(guest: Any, space: Space) -> None:
    """Every leaf, with its flags, as QEMU's own walk finds it."""
    with guest.monitor.patience(60):
        theirs = set(_TLB.findall(guest.monitor.monitor("info tlb")))
    leaves = expand_leaves(space.scan(flags=ALL_FLAGS, contiguity=Contiguity.BREAK))
    ours = {
        (f"{va:016x}", f"{pa:016x}", "".join(letter if flags >> bit & 1 else "-" for bit, letter in _LETTERS))
        for va, pa, flags, _ in leaves.tolist()
    }
    assert len(theirs) > 5000
    assert ours == theirs


def test_gva2gpa(guest: Any, space: Space) -> None:
    """1,000 addresses, of which most are mapped."""
    draw = random.Random(guest.levels)
    leaves = expand_leaves(space.scan(contiguity=Contiguity.BREAK))["start"].tolist()
    mapped = [draw.choice(leaves) + draw.randrange(4096) for _ in range(700)]
    anywhere = [space.mode.value.sign_extend(draw.getrandbits(64)) for _ in range(200)]
    near = [draw.choice(leaves) + 0x1000 * draw.randrange(64) for _ in range(100)]
    addresses = [va & (1 << 64) - 1 for va in mapped + anywhere + near]
    different = [f"{va:#x}" for va in addresses if _gva2gpa(guest, va) != _ours(space, va)]
    assert (len(addresses), different) == (1000, [])


def _gva2gpa(guest: Any, va: int) -> int | None:
    text = guest.monitor.monitor(f"gva2gpa {va:#x}").strip()
    return int(text.removeprefix("gpa: "), 16) if text.startswith("gpa: ") else None


def _ours(space: Space, va: int) -> int | None:
    found = space.translate(VirtAddr(va))
    return found.pa if isinstance(found, Mapped) else None


def test_memory_by_all_three_ways(guest: Any) -> None:
    digests = {}
    for way in WAYS:
        with open_source(f"qmp:{guest.qmp}", live_ram=way) as source:
            assert source.format == f"live QEMU, RAM by {way}"
            digest = hashlib.sha256()
            for extent in source.extents:
                digest.update(f"{extent.start:#x}-{extent.end:#x}".encode())
                for at in range(extent.start, extent.end, 1 << 24):
                    digest.update(source.memory.read(at, min(1 << 24, extent.end - at)))  # type: ignore[arg-type]
            digests[way] = digest.hexdigest()
    assert len(digests) == 3 and len(set(digests.values())) == 1, digests


def test_the_roots_in_memory(guest: Any, space: Space) -> None:
    """The CPU's own is among them, with the other half's, and all have the guest's number of levels."""
    roots = {root.root: root for root in find_roots(space.source)}
    mine = roots[space.root.value]
    assert mine.levels == guest.levels and mine.pair in roots


def test_the_audit_finds_nothing_but_what_the_cpu_lacks(space: Space) -> None:
    """The CPU model has neither SMEP nor SMAP; all roots are looked at, the trampoline's too."""
    found = audit_all_roots(space)
    failing = {one.rule.name: one.message for one in found.findings if one.fails}
    assert set(failing) == {"smep-off", "smap-off"}, failing
    assert found.looked_at == found.of.value and found.looked_at > 2


def test_vmcoreinfo_lies_in_memory(space: Space) -> None:
    """No note has it; the tables confirm it, and it says which kernel this is."""
    fact = About(space.source, space).facts()["vmcoreinfo"]
    assert fact.against is None and (fact.value or "").startswith("the tables confirm levels, phys_base"), fact
    assert space.system.is_linux and (space.release.value or "").partition(".")[0].isdigit()


def test_rights_are_what_the_cpu_does(space: Space) -> None:
    """Up to 200 regions, each kind of access at both privileges, with the registers that the guest has now."""
    cpu = space.source.cpus[0]
    assert None not in (cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer)
    regions = [region for region in space.regions(repeat_above=0) if region.page]
    for region in random.Random(7).sample(regions, min(200, len(regions))):
        rights = space.path(region.start).by_entries
        assert rights is not None and space.controls.granted(rights) == region.effective
        for ring, privilege in ((3, space.controls.user(rights)), (0, space.controls.supervisor(rights))):
            state = ControlState(cpu.cr0 or 0, cpu.cr3 or 0, cpu.cr4 or 0, cpu.efer or 0, cpl=ring)
            seen = (isinstance(access(space.tables, state, region.start, how), Allowed) for how in (READ, WRITE, FETCH))
            assert tuple(seen) == privilege, (hex(region.start), ring)


def test_nothing_in_the_guest_changes(guest: Any) -> None:
    """RAM and registers are the same after every command that reads."""
    before = _state(guest)
    for words in (["info"], ["dump"], ["roots"], ["audit"], ["stats"], ["walk", "0xffffffff81000000"]):
        command = [sys.executable, "-c", MAIN, words[0], f"qmp:{guest.qmp}", *words[1:], "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode in (0, 1), done.stderr
        assert json.loads(done.stdout)["schema"] == f"fivefold.{words[0]}/1"
    assert _state(guest) == before
    assert guest.monitor.ask("query-status")["running"] is False


def _state(guest: Any) -> tuple[str, str]:
    with Path(guest.ram).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return digest, guest.monitor.monitor("info registers")


def test_attaching_leaves_a_running_guest_running(guest: Any) -> None:
    guest.monitor.ask("cont")
    try:
        with open_source(f"qmp:{guest.qmp}") as source:
            assert source.torn and guest.monitor.ask("query-status")["running"]
        with open_source(f"qmp:{guest.qmp}", freeze=True) as source:
            assert not source.torn and not guest.monitor.ask("query-status")["running"]
        assert guest.monitor.ask("query-status")["running"]
    finally:
        guest.monitor.ask("stop")


def test_flags_are_spelled_as_in_the_manual() -> None:
    assert [1 << bit for bit, _ in _LETTERS] == [
        int(flag) for flag in (Flag.NX, Flag.G, Flag.BIT7, Flag.D, Flag.A, Flag.PCD, Flag.PWT, Flag.US, Flag.RW)
    ]


GDBS = ["system", "newer"]


def gdb_command(which: str) -> tuple[list[str], dict[str, str]]:
    """How to start the system's gdb, or the one in the folder that FIVEFOLD_NEWER_GDB names; and its environment."""
    if which == "system":
        return ["gdb"], dict(os.environ)
    if not os.environ.get("FIVEFOLD_NEWER_GDB"):
        reason = "FIVEFOLD_NEWER_GDB names no other gdb (.ci/unpack FOLDER trixie gdb makes one)"
        (pytest.fail if os.environ.get("FIVEFOLD_REQUIRE_NEWER_GDB") else pytest.skip)(reason)
    found = find_program(["gdb"], None, "FIVEFOLD_NEWER_GDB")
    assert found is not None
    env = {**os.environ, "PYTHONHOME": f"{found.root}/usr", "PYTHONDONTWRITEBYTECODE": "1"}
    return [*found.command, f"--data-directory={found.root}/usr/share/gdb"], env


@pytest.mark.gdb
@pytest.mark.parametrize("which", GDBS)
def test_gdbs_commands_on_linux(guest: Any, tmp_path: Path, which: str) -> None:
    """In a real session: a register and a symbol of gdb's, against QEMU's own walk and the same command by QMP."""
    command, env = gdb_command(which)
    told = Path(guest.told).read_bytes().decode(errors="replace")
    banner = int(re.search(r"^([0-9a-f]{16}) \w linux_banner$", told, re.MULTILINE)[1], 16)  # type: ignore[index]
    (tmp_path / "names.S").write_text(f".globl linux_banner\n.set linux_banner, {banner:#x}\n")
    subprocess.run(["gcc", "-c", "names.S", "-o", "names.o"], cwd=tmp_path, check=True)
    (tmp_path / "line.gdb").write_text(gdb_line())
    guest.monitor.monitor(f"gdbserver unix:{tmp_path}/gdb,server=on,wait=off")
    lines = [f"target remote {tmp_path}/gdb", "symbol-file names.o", "ff walk -j $rip &linux_banner", "ff info -j"]
    call = [*command, "-nx", "-q", "-batch", "-x", "line.gdb"]
    try:
        call += [word for line in (*lines, "info registers rip") for word in ("-ex", line, "-ex", r"echo \n@@@\n")]
        done = subprocess.run(call, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
    finally:
        guest.monitor.ask("stop")  # gdb detached, which lets a guest go on
        guest.monitor.monitor("gdbserver none")
    _, _, walked, info, rip = (text.strip() for text in done.stdout.split("@@@\n")[:5])
    walks = json.loads(walked)["walks"]
    assert json.loads(info)["levels"] == guest.levels == walks[1]["steps"][0]["level"]
    assert int(walks[0]["address"], 16) == int(rip.split()[1], 16)
    assert int(walks[1]["address"], 16) == banner
    for walk in walks:
        answer = guest.monitor.monitor(f"gva2gpa {walk['address']}")
        assert int(answer.split()[-1], 16) == int(walk["phys"], 16)
    with open_source(f"qmp:{guest.qmp}") as source:
        assert source.memory.read(PhysAddr(int(walks[1]["phys"], 16)), 14) == b"Linux version "
