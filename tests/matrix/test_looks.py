"""Checks from outside, on captures of real guests: with what the guests said of themselves, and one thing wrong."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from fivefold.matrix.cells import Cell
from fivefold.matrix.run import looks as looks_module
from fivefold.matrix.run.causes import cause_of_log
from fivefold.matrix.run.console import InitReport
from fivefold.matrix.run.keep import write_tables
from fivefold.matrix.run.kernel_text import compare_text
from fivefold.matrix.run.looks import View, looks
from fivefold.matrix.run.places import MachinePlaces
from fivefold.memory import open_source
from fivefold.survey.space import Space, open_space

DATA = Path(__file__).parents[1] / "data"
GUESTS = DATA / "guests"


class Still:
    """A machine that stands still; its monitor's walk is in a file."""

    def __init__(self, guest: str) -> None:
        self._path = GUESTS / f"{guest}.info-tlb.txt.xz"

    def leaves(self) -> str | None:
        return lzma.decompress(self._path.read_bytes()).decode() if self._path.exists() else None


def view(guest: str, mode: str, **cell: Any) -> View:
    facts = json.loads((GUESTS / f"{guest}.facts.json").read_text())
    symbols = {name: int(at, 16) for name, at in facts["symbols"].items()}
    text = GUESTS / f"{guest}.ptdump-kernel.txt"
    report = InitReport({"release": ["6.1.192"], "flags": []}, symbols=symbols)
    report.text = text.read_bytes() if text.exists() else None
    return View(Cell("c", **cell), report, mode, Still(guest), open_source(GUESTS / f"{guest}.elf.xz"))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The captures have tables and no data: what the kernel's variables held is in the facts beside them."""
    known = {}
    for file in GUESTS.glob("*.facts.json"):
        facts = json.loads(file.read_text())
        for name, value in facts["kernel_variables"].items():
            if name in facts["symbols"]:
                known[int(facts["symbols"][name], 16)] = int(value, 16)
    monkeypatch.setattr(looks_module, "_word", lambda view, va: known.get(va))


def failed(found: View) -> set[str]:
    with found.source:
        return {check.name for check in looks(found) if not check.ok}


SPARSE = {"audit", "audit-smep-off", "audit-smap-off", "areas", "audit-missing-table", "audit-table-outside-memory"}
"""What a capture of tables alone, on a CPU model without SMEP and SMAP, fails by itself."""


@pytest.mark.parametrize("guest", ["plain-la57-kaslr", "debian-la57-kaslr-pti", "debian-no5lvl-kaslr"])
def test_a_guest_that_is_well(guest: str) -> None:
    assert failed(view(guest, "la48" if "no5lvl" in guest else "la57")) <= SPARSE


def test_the_wrong_mode_is_seen() -> None:
    assert {"mode", "area-direct_map"} <= failed(view("plain-la57-kaslr", "la48"))


def test_bases_that_are_not_the_defaults_without_kaslr_are_seen() -> None:
    found = failed(view("plain-la57-kaslr", "la57", cmdline="nokaslr"))
    assert {"area-direct_map", "area-vmalloc", "area-vmemmap"} <= found


def test_another_base_in_the_kernels_variable_is_seen() -> None:
    wrong = view("plain-la57-kaslr", "la57")
    symbols = wrong.report.symbols
    symbols["vmalloc_base"], symbols["page_offset_base"] = symbols["page_offset_base"], symbols["vmalloc_base"]
    assert {"kallsyms-vmalloc_base", "kallsyms-page_offset_base"} <= failed(wrong)


def test_a_kernel_that_lists_no_symbols_is_seen() -> None:
    wrong = view("plain-la57-kaslr", "la57")
    wrong.report.symbols.clear()
    assert "kallsyms" in failed(wrong)


def test_a_leaf_that_the_monitor_has_and_we_have_not_is_seen() -> None:
    wrong = view("debian-la57-kaslr-pti", "la57")
    said = wrong.machine.leaves() or ""
    lines = said.splitlines(keepends=True)
    wrong.machine = replace_leaves("".join(lines[:5] + lines[6:]))  # type: ignore[assignment]
    assert "dump-against-info-tlb" in failed(wrong)


def replace_leaves(text: str) -> Still:
    found = Still("")
    found.leaves = lambda: text  # type: ignore[method-assign]
    return found


@pytest.mark.parametrize("guest", ["plain-la57-kaslr", "plain-la48-kaslr", "kasan-la57-nokaslr"])
def test_the_kernels_own_text(guest: str) -> None:
    text = (GUESTS / f"{guest}.ptdump-kernel.txt").read_text()
    with open_space(GUESTS / f"{guest}.elf.xz") as space:
        differs, count = compare_text(space, text)
        assert differs is None and count > 20
        line = next(line for line in text.splitlines() if " RW " in line and "GLB" in line)
        at = int(line[2:18], 16)
        assert compare_text(space, text.replace(line, line.replace(" RW ", " ro "), 1))[0] == at
        assert compare_text(space, text.replace(line, line.replace(" NX ", " x  "), 1))[0] == at
        assert compare_text(space, text.replace(line + "\n", "", 1))[0] == at


def planted(name: str, release: str, cmdline: str) -> set[str]:
    """What fails of a kernel with a planted bug, by the tables that `fivefold matrix --keep` kept of it."""
    source = open_source(DATA / "matrix" / f"{name}.elf.xz")
    report = InitReport({"release": [release], "flags": []}, symbols={"phys_base": 1})
    return failed(View(Cell("c", cmdline=cmdline), report, "la57", Still(""), source))  # type: ignore[arg-type]


def test_a_wrong_base_of_the_direct_map_is_seen_without_kaslr() -> None:
    """Debian's 6.12 with 0xff12000000000000 in place of 0xff11000000000000: `bench/matrix_bisect.py`."""
    assert planted("wrong-direct-map", "6.12.117", "nokaslr") <= {"area-direct_map", *SPARSE}
    assert "area-direct_map" in planted("wrong-direct-map", "6.12.117", "nokaslr")


@pytest.mark.parametrize("area", ["vmalloc", "vmemmap"])
def test_a_wrong_base_of_another_area_is_seen_without_kaslr(area: str) -> None:
    """Linux 6.1 of ours, whose base with five levels is another one."""
    found = planted(f"wrong-{area}", "6.1.192-pglab", "nokaslr")
    assert f"area-{area}" in found and found <= {f"area-{area}", *SPARSE}


@pytest.mark.parametrize(
    ("name", "area"), [("modules", "modules"), ("direct-map", "direct_map"), ("vmalloc", "vmalloc")]
)
def test_a_page_that_can_be_written_and_executed_is_seen_where_it_is(name: str, area: str) -> None:
    """Linux 6.1 of ours that leaves one page so: the finding names its area."""
    with open_source(DATA / "matrix" / f"wx-{area.replace('_', '-')}.elf.xz") as source:
        report = InitReport({"release": ["6.1.192-pglab"], "flags": []}, symbols={"phys_base": 1})
        seen = View(Cell("c"), report, "la57", Still(""), source)  # type: ignore[arg-type]
        found = [check.detail for check in looks(seen) if check.name == "audit-wx-kernel" and not check.ok]
    assert len(found) == 1 and f" in {area}: " in found[0], found


@pytest.mark.parametrize(
    ("name", "rule", "words"),
    [
        ("image-mapped-elsewhere", "not-present", "jump to 0x000000000a8000a2, which is not mapped"),
        ("unpacker-without-idt", "idt-limit", "the IDT ends before its gate"),
    ],
)
def test_triple_faults_of_planted_bugs_have_their_story(name: str, rule: str, words: str) -> None:
    """Linux 6.1 of ours, as QEMU logged it: see ORIGIN.md for what was planted."""
    log = lzma.decompress((DATA / "matrix" / f"{name}.log.xz").read_bytes())
    with open_source(DATA / "matrix" / f"{name}.elf.xz") as source:
        cause = cause_of_log(log, MachinePlaces(source))
    assert cause is not None and cause.rule == rule and words in cause.sentence, cause


def test_text_that_can_be_written_is_seen() -> None:
    """Debian's 6.1 that was told ``rodata=off``."""
    found = planted("rodata-off", "6.1.192", "rodata=off")
    assert {"audit-wx-kernel", "audit"} <= found and "area-direct_map" not in found


def test_the_bug_of_2017_has_its_story() -> None:
    """Linux 6.1 with KASAN and the conversion without ``phys_base`` put back, as QEMU logged it."""
    log = (DATA / "faults" / "kernel_kasan_physbase_1.log").read_text()
    with open_source(DATA / "faults" / "kernel_kasan_physbase_1.elf.xz") as source:
        cause = cause_of_log(log, MachinePlaces(source))
    assert cause is not None and cause.rule not in ("unknown", "panic")
    assert "Triple fault" in cause.sentence


def test_tables_that_are_kept_are_the_tables(tmp_path: Path) -> None:
    """The dump of tables alone has the same root, mode and ranges."""
    with open_source(GUESTS / "plain-la57-kaslr.elf.xz") as source:
        write_tables(tmp_path / "tables.elf", source)
        want = Space(source)
        with open_space(tmp_path / "tables.elf") as got:
            assert (got.root.value, got.levels) == (want.root.value, want.levels)
            assert got.scan().rows["start"].tolist() == want.scan().rows["start"].tolist()
            assert got.source.cpus[0].rip == source.cpus[0].rip
    assert (tmp_path / "tables.elf").stat().st_size < 1 << 20
