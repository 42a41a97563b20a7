"""Real nested guests: Debian's 6.1 with kvm-amd under QEMU's SVM, four and five levels of host and guest.

Three witnesses that share no code with what is tested: the host's /proc/self/pagemap for each page of the guest,
KVM_TRANSLATE for the guest's addresses (both in the facts), and the plain loop below over the words of the capture.
"""

from __future__ import annotations

import itertools
import json
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fivefold.arch import LA48, LA57, AddressSpace, Allowed, Cpu, Mapped
from fivefold.arch.second_level.nested import SecondLevelFault, nested_translate
from fivefold.arch.second_level.npt import nested_space, npt_access
from fivefold.cli.commands import run
from fivefold.memory import Source, open_source
from fivefold.units import PhysAddr, VirtAddr

DATA = Path(__file__).parents[2] / "data" / "nested"
NAMES = [f"nested-{host}-{guest}" for host, guest in itertools.product(("la48", "la57"), repeat=2)]
MODES = {4: LA48, 5: LA57}
Call = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def facts(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DATA / f"{name}.facts.json").read_text())
    return found


@pytest.fixture
def source(name: str) -> Iterator[Source]:
    with open_source(str(DATA / f"{name}.elf.xz")) as opened:
        yield opened


@pytest.fixture
def fivefold(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str) -> Call:
    def call(command: str, *words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["fivefold", command, str(DATA / f"{name}.elf.xz"), *words])
        status = run()
        out, err = capsys.readouterr()
        return status, out, err

    return call


def plain_pages(source: Source, root: int, levels: int) -> Iterator[tuple[int, int, int, int]]:
    """Every leaf at *root*: the address, where it leads, its size, and the AND of the entries above and of itself."""
    work = [(root, levels, 0, -1)]
    while work:
        table, level, base, rights = work.pop()
        for index, raw in enumerate(struct.unpack("<512Q", source.memory.read(PhysAddr(table), 4096))):
            first, size = base + (index << (3 + 9 * level)), 1 << (3 + 9 * level)
            if raw & 1 and level > 1 and not raw & 0x80:
                work.append((raw & 0xFF_FFFF_F000, level - 1, first, rights & raw))
            elif raw & 1:
                yield first, raw & 0xFF_FFFF_F000 & -size, size, rights & raw


def test_the_vmcb_names_the_root(source: Source, facts: dict[str, Any]) -> None:
    vmcb = source.memory.read(PhysAddr(facts["vmcb"]), 4096)
    assert vmcb[0x90] & 1
    assert struct.unpack_from("<Q", vmcb, 0xB0)[0] == facts["ncr3"]
    assert source.cpus[0].cr4 is not None
    assert source.cpus[0].cr4 >> 12 & 1 == (facts["host_levels"] == 5)


def test_dump_shows_the_tables_of_npt(fivefold: Call, source: Source, facts: dict[str, Any]) -> None:
    status, out, err = fivefold("dump", "--npt", f"{facts['ncr3']:#x}", "--json")
    assert (status, err) == (0, "")
    told = dict(map(tuple, facts["page"]))
    plain = {start: (host, size, bool(rights & 2)) for start, host, size, rights in plain_pages(
        source, facts["ncr3"], facts["host_levels"])}  # fmt: skip
    seen = set()
    for region in json.loads(out)["regions"]:
        start, end = int(region["start"], 16), int(region["end"], 16)
        while start < end:
            host, size, writable = plain[start]
            assert writable == region["effective"]["write"]
            assert told[start] == host
            seen.add(start)
            start += size
    assert seen == set(plain)
    assert len(seen) >= 20
    assert sorted(size for _, size, _ in plain.values())[-2:] == [0x1000, 0x20_0000]
    assert [start for start, (_, _, writable) in plain.items() if not writable] == [0x8000_0000]


def test_the_guest_behind_npt(fivefold: Call, facts: dict[str, Any]) -> None:
    options = (
        "--npt", f"{facts['ncr3']:#x}:{facts['host_levels']}", "--cr3", f"{facts['guest_cr3']:#x}",
        "--levels", str(facts["guest_levels"]), "--phys-bits", "40",
    )  # fmt: skip
    assert len(facts["translate"]) == (10 if facts["guest_levels"] == 5 else 8)
    status, out, _ = fivefold("walk", *(f"{va:#x}" for va, _ in facts["translate"]), *options)
    assert status == 0
    assert re.findall(r"^  -> (\w+)  ", out, re.MULTILINE) == [f"{gpa:#018x}" for _, gpa in facts["translate"]]
    status, out, _ = fivefold("dump", *options)
    firsts = {int(first, 16) for first in re.findall(r"^(0x[0-9a-f]{16})-", out, re.MULTILINE)}
    assert status == 0
    assert firsts == {va for va, _ in facts["translate"]} - {0xFFFF_FFFF_8000_1000}


def test_the_audit_of_npt(fivefold: Call, source: Source, facts: dict[str, Any]) -> None:
    status, out, err = fivefold("audit", "--npt", f"{facts['ncr3']:#x}", "--json")
    assert (status, err) == (1, "")
    found = json.loads(out)
    ranges = [(int(one["start"], 16), int(one["end"], 16)) for one in found["findings"] if one["rule"] == "wx-user"]
    pages = [(start, size) for start, _, size, rights in plain_pages(source, facts["ncr3"], facts["host_levels"])
             if rights & 2 and not rights >> 63 & 1]  # fmt: skip
    for start, size in pages:
        assert any(first <= start and start + size <= end for first, end in ranges)
    assert sum(end - first for first, end in ranges) == sum(size for _, size in pages)


def test_nested_walks(source: Source, facts: dict[str, Any]) -> None:
    outer = nested_space(source.memory, PhysAddr(facts["ncr3"]), MODES[facts["host_levels"]], Cpu(phys_bits=40))
    inner = AddressSpace(source.memory, PhysAddr(facts["guest_cr3"]), MODES[facts["guest_levels"]], Cpu(phys_bits=40))
    told = dict(map(tuple, facts["page"]))

    def second(gpa: int, final: bool) -> PhysAddr:
        found = npt_access(outer, gpa)
        if not isinstance(found, Allowed):
            raise SecondLevelFault(gpa, found.rule.value, final)
        return found.pa

    with pytest.raises(SecondLevelFault):  # of a large page of the guest's, whose first 4 KiB it never touched
        nested_translate(inner, second, VirtAddr(0))
    for va, gpa in facts["translate"][1:]:
        found = nested_translate(inner, second, VirtAddr(va))
        translated, hpa = found
        assert isinstance(translated, Mapped)
        assert (translated.pa, hpa) == (gpa, told[gpa])


@pytest.mark.parametrize("kind", ["ept", "vtd"])
def test_other_options_are_refused_with_the_right_one(fivefold: Call, facts: dict[str, Any], kind: str) -> None:
    root, levels = facts["ncr3"], facts["host_levels"]
    words = f"{root | (levels - 1) << 3 | 6:#x}" if kind == "ept" else f"{root:#x}:{levels}"
    status, out, err = fivefold("dump", f"--{kind}", words)
    assert (status, out) == (2, "")
    assert f"give --npt {root:#x}:{levels}" in err


def test_explain_reads_the_guest_behind_npt(fivefold: Call, facts: dict[str, Any]) -> None:
    cr4 = 0x1020 if facts["guest_levels"] == 5 else 0x20
    words = (
        "--npt", f"{facts['ncr3']:#x}", "--cr3", f"{facts['guest_cr3']:#x}", "--cr4", f"{cr4:#x}",
        "--cr0", "0x80010033", "--efer", "0xd00", "--cr2", "0xffff900000000008", "--error-code", "3", "--cpl", "0",
    )  # fmt: skip
    status, out, err = fivefold("explain", *words)
    assert (status, err) == (0, "")
    assert "write-protected at PT, certain" in out
    assert f"through --npt {facts['ncr3']:#x}:{facts['host_levels']}" in out
    assert "PT entry is 0x8000000080000021" in out
    status, out, err = fivefold("explain", "--vtd", f"{facts['ncr3']:#x}:{facts['host_levels']}", *words[2:])
    assert (status, out) == (2, "")
    assert f"give --npt {facts['ncr3']:#x}:{facts['host_levels']}" in err
