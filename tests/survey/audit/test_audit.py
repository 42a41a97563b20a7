"""Each rule of the audit: what it must find, and what it must leave alone."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fivefold.arch import LA48, LA57, Cr4, Flag, Level, TooManyRuns
from fivefold.memory import Bank, BankedMemory, CpuState, Source
from fivefold.survey.audit import audit as module
from fivefold.survey.audit import audit_checks, audit_views
from fivefold.survey.audit.alias_checks import LINUX_PAT
from fivefold.survey.audit.audit import Audit, audit
from fivefold.survey.audit.audit_views import Views
from fivefold.survey.audit.policy import Policy
from fivefold.survey.audit.rules import RULE_NAMES, Severity
from fivefold.survey.space import Space, open_space
from fivefold.units import GIB, MIB

GUESTS = Path(__file__).parents[2] / "data" / "guests"
P, W, U = 1, 2, 4
PWT, PCD, G, NX = (int(flag) for flag in (Flag.PWT, Flag.PCD, Flag.G, Flag.NX))
KERNEL = 0xFFFF_9000_0000_0000
NO_EXCEPTIONS = Policy(exceptions=())
DIRECT_MAP = 0xFFFF_8880_0000_0000

Build = Callable[..., Any]


def told(found: Audit) -> list[str]:
    """Rule, first address and message of each finding."""
    return [
        f"{one.rule.name} {one.window.start:x}+{one.size:x} {one.message}" if one.window else one.message
        for one in found.findings
    ]


@pytest.mark.parametrize("path", sorted(GUESTS.glob("*.elf.xz")), ids=lambda path: path.name.partition(".")[0])
def test_real_guests_pass(path: Path) -> None:
    """Nothing is wrong with them; what every Linux has by design is excepted, and told."""
    with open_space(str(path)) as space:
        found = audit(space)
        cr4 = space.source.cpus[0].cr4 or 0
        off = {"smep-off" for _ in [0] if not cr4 & Cr4.SMEP} | {"smap-off" for _ in [0] if not cr4 & Cr4.SMAP}
        assert {one.rule.name for one in found.findings if one.fails} == off
        assert found.limits == () and [one.rule.name for one in found.results if one.skipped] == ["nx-off"]
        rules = {one.rule.name for one in found.findings} - off
        assert {"executable-direct-map", "table-writable-alias"} <= rules
        assert rules <= {"executable-direct-map", "table-writable-alias", "guard-mapped"}
        assert not audit(space, NO_EXCEPTIONS).ok


def test_the_hole_that_kasan_fills_is_found() -> None:
    with open_space(str(GUESTS / "kasan-la57-nokaslr.elf.xz")) as space:
        found = [one for one in audit(space).findings if one.rule.name == "guard-mapped"]
        assert (found[0].window.start, found[-1].window.stop) == (0xFFDF_0000_0000_0000, 0xFFDF_FC00_0000_0000)


def test_a_clean_space(build: Build) -> None:
    built = build(LA57).pages(0x40_0000, 0x3000, 0x10_0000 | P | U).pages(0x50_0000, 0x3000, 0x20_0000 | P | W | U | NX)
    found = audit(built.space())
    assert told(found) == []
    assert found.ok and [result.rule.name for result in found.results if result.skipped] == [
        "executable-direct-map",
        "guard-mapped",
        "nx-off",
    ]


@pytest.mark.parametrize("level", [Level.PT, Level.PD, Level.PDPT])
def test_wx_at_every_page_size(build: Build, level: Level) -> None:
    for va, user, rule, severity in (
        (KERNEL, 0, "wx-kernel", "error"),
        (GIB, U, "wx-user", "warning"),
        (GIB, 0, "wx-kernel", "error"),  # the supervisor's, as of firmware
    ):
        found = audit(build(LA48).page(va, GIB | P | W | user, level).space())
        (one,) = [one for one in found.findings if one.rule.name.startswith("wx")]
        assert (one.rule.name, one.severity, one.window.start, one.phys) == (
            rule,
            severity,
            va,
            range(GIB, GIB + level.span),
        )
        assert not found.ok


def test_rights_of_the_whole_path_count(build: Build) -> None:
    """A table entry with NX masks a leaf without, one without W a leaf with."""
    for bit in (NX, None):
        built = build(LA48).page(KERNEL, GIB | P | W)
        top = int.from_bytes(built.ram.read(0x1000 + 8 * 288, 8), "little")
        built.entry(0x1000, 288, top | NX if bit else top & ~W)
        assert "wx-kernel" not in " ".join(told(audit(built.space())))


def test_user_reaches_the_kernel_half(build: Build) -> None:
    found = audit(build(LA48).page(KERNEL, GIB | P | U | NX).space())
    assert told(found) == ["user-kernel-half ffff900000000000+1000 4K pages are r--u, within reach of user mode"]
    assert [path.va for path in found.findings[0].evidence] == [KERNEL]
    assert len(found.findings[0].evidence[0].steps) == 4


def test_a_table_shared_between_the_halves_is_seen_in_both(build: Build) -> None:
    built = build(LA48).page(GIB, GIB | P | U | NX)
    built.entry(0x1000, 288, 0x4000 | P | W | U)  # the PDPT of the user half
    assert told(audit(built.space())) == [
        "user-kernel-half ffff900040000000+1000 4K pages are r--u, within reach of user mode"
    ]


def test_code_that_is_writable_elsewhere(build: Build) -> None:
    built = build(LA57).page(0xFFA0_0000_0000_0000, 2 * MIB | P, Level.PD)
    built.page(0xFFB0_0000_0000_0000, 2 * MIB + 0x3000 | P | W | NX)
    found = audit(built.space())
    assert told(found) == [
        "writable-code-alias ffa0000000003000+1000 code at 0xffa0000000003000 is writable at 0xffb0000000000000"
    ]
    assert found.findings[0].aliases == (0xFFB0_0000_0000_0000,)
    assert [path.va for path in found.findings[0].evidence] == [0xFFA0_0000_0000_3000, 0xFFB0_0000_0000_0000]


def test_code_that_is_writable_through_a_table_met_again(build: Build) -> None:
    """The second place of a shared table has other rights; a scan that skips it would miss them."""
    built = build(LA48).page(KERNEL, GIB | P | W)
    top = int.from_bytes(built.ram.read(0x1000 + 8 * 288, 8), "little")
    built.entry(0x1000, 288, top & ~W).entry(0x1000, 289, top | NX)
    assert [text.partition(" ")[0] for text in told(audit(built.space()))] == ["writable-code-alias"]


@pytest.mark.parametrize("slots", [(289,), (289, 290)])
def test_a_table_met_again_is_read_to_its_end_and_no_further(build: Build, slots: tuple[int, ...]) -> None:
    """Each page is counted at its first place and at the one where its table is met again, not at its neighbours."""
    built = build(LA48).page(KERNEL, GIB | P | NX)
    top = int.from_bytes(built.ram.read(0x1000 + 8 * 288, 8), "little")
    for slot in slots:
        built.entry(0x1000, slot, top)
    built.page(KERNEL + (slots[-1] - 287 << 39), 3 * GIB | P | NX)
    views = Views(built.space())
    assert sorted(views.leaves.phys.tolist()) == [GIB, GIB, 3 * GIB]


def test_code_of_a_process_is_not_the_kernels(build: Build) -> None:
    """The direct map writes every page of every process; that is no finding."""
    built = build(LA48).page(GIB, 2 * GIB | P | U).page(KERNEL, 2 * GIB | P | W | NX)
    assert told(audit(built.space())) == []
    built.page(2 * GIB, 2 * GIB | P | W | U | NX)
    found = audit(built.space())
    assert told(found) == [
        "user-writable-code-alias 40000000+1000 code at 0x0000000040000000 is writable at 0x0000000080000000"
    ]


def test_tables_that_user_mode_reaches(build: Build) -> None:
    built = build(LA48).page(GIB, 0x1000 | P | U | NX)
    assert told(audit(built.space())) == [
        "table-user 40000000+1000 user mode can read the table at 0x0000000000001000 at 0x0000000040000000"
    ]
    built.page(GIB + 0x1000, 0x1000 | P | W | U | NX)
    text = "user mode can write the table at 0x0000000000001000 at 0x0000000040000000"
    assert f"table-user 40000000+1000 {text}" in told(audit(built.space()))


def test_tables_that_are_writable_twice(build: Build) -> None:
    built = build(LA48).pages(KERNEL, 0x2000, 0x1000 | P | W | NX)
    assert told(audit(built.space())) == []
    built.page(KERNEL + GIB, 0x2000 | P | W | NX)
    assert told(audit(built.space())) == [
        "table-writable-alias ffff900040000000+1000 the table at 0x0000000000002000 can be written at "
        "0xffff900040000000 and 0xffff900000001000"
    ]


def test_tables_that_are_writable_through_a_shared_table(build: Build) -> None:
    built = build(LA48).page(KERNEL, 0x1000 | P | W | NX)
    built.entry(0x3000, 7, 0x2000 | P | W | U)  # its PT once more, 14 MiB further on
    assert [text.partition("+")[0] for text in told(audit(built.space()))] == ["table-writable-alias ffff900000e00000"]


def test_executable_direct_map(build: Build) -> None:
    built = build(LA48).linux()
    assert audit(built.space()).findings == []
    built.page(DIRECT_MAP + 64 * MIB, 64 * MIB | P)
    (one,) = audit(built.space()).findings
    assert (one.rule.name, one.area, one.message) == (
        "executable-direct-map",
        "direct_map",
        "4K pages of the direct map are r-x-",
    )


@pytest.mark.parametrize(("level", "page"), [(Level.PT, "4K"), (Level.PD, "2M")])
def test_null_page(build: Build, level: Level, page: str) -> None:
    """The one test that needs something at address 0: its being there is the finding."""
    found = audit(build(LA48).page(0, GIB | P | U | NX, level).space())
    assert told(found) == [f"null-page 0+1000 address 0 is mapped, r--u, by a {page} page"]
    assert found.findings[0].phys == range(GIB, GIB + 0x1000)


def test_memory_types(build: Build) -> None:
    built = build(LA48).page(KERNEL, GIB | P | NX).page(KERNEL + GIB, GIB | P | PCD | NX)
    (one,) = audit(built.space()).findings
    assert (one.rule.name, one.message) == (
        "memory-type-conflict",
        "PAT entry 0 at 0xffff900000000000, PAT entry 2 at 0xffff900040000000",
    )
    (one,) = audit(built.space(), pat=LINUX_PAT).findings
    assert one.message == "WB at 0xffff900000000000, UC_MINUS at 0xffff900040000000"


def test_memory_types_that_are_the_same_under_two_numbers(build: Build) -> None:
    """PAT is bit 7 of a PT entry and bit 12 of a large one; entry 4 is WB, too, where the PAT says so."""
    built = build(LA48).page(KERNEL, GIB | P | NX).page(KERNEL + GIB, GIB | P | NX | 1 << 12, Level.PD)
    assert [one.rule.name for one in audit(built.space()).findings] == ["memory-type-conflict"]
    assert audit(built.space(), pat=LINUX_PAT).findings == []


def test_memory_types_of_the_chipset(build: Build) -> None:
    """The MTRRs make what lies there UC; only WC stays another type. Beside it are devices that may be either."""
    for at, second, pat, wanted in (
        (0xFED0_0000, PCD, None, 0), (0xFED0_0000, PCD, LINUX_PAT, 0), (0xFED0_0000, PWT, LINUX_PAT, 1),
        (0xFED0_0000, PWT, None, 1), (0xFEBF_F000, PCD, None, 1), (1 << 32, PCD, None, 1),
        (0xFEC0_0000, PCD, None, 0), (0xFFFF_F000, PCD, None, 0),
    ):  # fmt: skip
        built = build(LA48).page(KERNEL, at | P | NX).page(KERNEL + GIB, at | P | second | NX)
        assert len(audit(built.space(), pat=pat).findings) == wanted, hex(at)


def test_malformed_entries_and_missing_tables(build: Build) -> None:
    built = build(LA48).page(KERNEL, GIB | P | NX)
    built.entry(0x3000, 4, 4 * MIB | 0x2000 | P | int(Flag.BIT7)).entry(0x3000, 6, 0x5000_0000 | P)
    assert told(audit(built.space())) == [
        "malformed-entry ffff900000800000+200000 PD entry with reserved bits set, flags 0x0000000000002081, "
        "holding 0x0000000000402000",
        "table-not-in-memory ffff900000c00000+200000 the PT table at 0x0000000050000000 is not in memory",
    ]


def test_cycles_and_mixed_levels(build: Build) -> None:
    built = build(LA48).page(KERNEL, GIB | P | NX).entry(0x1000, 300, 0x1000 | P)
    found = {one.rule.name: one for one in audit(built.space()).findings}
    assert found["table-cycle"].severity is Severity.WARNING
    assert found["table-cycle"].window.start == 0xFFFF_9600_0000_0000
    assert found["table-at-two-levels"].message.startswith("a table was met at another level than before, ")


def test_how_often_a_cycle_was_met_is_told(build: Build) -> None:
    built = build(LA48).page(KERNEL, GIB | P | NX).entry(0x3000, 300, 0x3000 | P | NX)
    (once,) = [one for one in audit(built.space()).findings if one.rule.name == "table-cycle"]
    assert once.message == "a table was found to contain itself, once"
    built.entry(0x3000, 301, 0x3000 | P | NX)
    (twice,) = [one for one in audit(built.space()).findings if one.rule.name == "table-cycle"]
    assert twice.message == "a table was found to contain itself, 2 times, here first"
    assert once.window.start == twice.window.start


def test_tables_that_share_each_other_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them leads to all of them, so that leaves at second places grow with the square of the tables."""
    tables = b"".join(
        struct.pack("<512Q", *((index * (2 * table + 1) % 16 << 12 | (5 if index % 2 else 7)) for index in range(512)))
        for table in range(16)
    )
    cpu = CpuState("test", cr0=0x8005_0033, cr3=0, cr4=0x20)
    monkeypatch.setattr(audit_views, "MAX_LEAVES", 1 << 14)
    with Space(Source(BankedMemory([Bank(0, memoryview(tables))], "bomb"), "demo", (cpu,))) as space:
        with pytest.raises(TooManyRuns, match=r"unfold into more than 16384 runs$"):
            audit(space)
        monkeypatch.undo()
        assert not audit(space).ok


def test_guards(build: Build) -> None:
    built = build(LA48).linux().page(0xFFFF_8000_0000_0000, GIB | P | NX)
    (one,) = audit(built.space()).findings
    assert (one.rule.name, one.area) == ("guard-mapped", "guard_hole")


def test_global_pages_of_a_process(build: Build) -> None:
    found = audit(build(LA48).page(GIB, GIB | P | U | NX | G).page(KERNEL, 2 * GIB | P | NX | G).space())
    assert told(found) == [
        "global-user-page 40000000+1000 4K pages have G set; their translations stay when CR3 changes"
    ]


def test_rules_that_are_off_are_skipped_with_the_reason(build: Build) -> None:
    policy = Policy(severities={"wx-kernel": Severity.OFF})
    found = audit(build(LA48).page(KERNEL, GIB | P | W).space(), policy)
    assert found.ok and found.results[0].skipped == "turned off by the built-in policy"


def test_notes_do_not_fail(build: Build) -> None:
    policy = Policy(severities={"wx-kernel": Severity.NOTE})
    found = audit(build(LA48).page(KERNEL, GIB | P | W).space(), policy)
    assert found.ok and found.totals() == {"note": 1}


def test_more_findings_than_are_told(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_HITS", 3)
    monkeypatch.setattr(audit_checks, "MAX_HITS", 3)
    built = build(LA48)
    for i in range(5):
        built.page(KERNEL + 0x2000 * i, GIB | P | W)
    found = audit(built.space()).results[0]
    assert len(found.findings) == 3 and found.cut


@pytest.mark.parametrize(("count", "cut"), [(3, False), (4, True)])
@pytest.mark.parametrize("rule", ["malformed-entry", "table-not-in-memory", "user-kernel-half"])
def test_whether_more_were_found_than_are_told(
    build: Build, monkeypatch: pytest.MonkeyPatch, rule: str, count: int, cut: bool
) -> None:
    monkeypatch.setattr(module, "MAX_HITS", 3)
    monkeypatch.setattr(audit_checks, "MAX_HITS", 3)
    built = build(LA48).page(KERNEL, GIB | P | NX)
    for i in range(2, 2 + 2 * count, 2):
        if rule == "user-kernel-half":
            built.page(KERNEL + 0x1000 * i, GIB + 0x3000 * i | P | U | NX)
        else:
            built.entry(0x1000, 300 + i, (0x80 if rule == "malformed-entry" else 0) | 0x7000_0000_0000 | P)
    (found,) = (one for one in audit(built.space()).results if one.rule.name == rule)
    assert (len(found.findings), found.cut) == (3, cut)


def test_every_rule_has_a_result_in_the_order_of_rules(build: Build) -> None:
    found = audit(build(LA48).page(KERNEL, GIB | P | NX).space())
    assert tuple(result.rule.name for result in found.results) == RULE_NAMES
