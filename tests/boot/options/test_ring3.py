"""Ring 3 stays in ring 3, on a machine; and each protection, taken away, fails the check that stands for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fivefold.boot import Image, Run

Boot = Callable[..., Run]
NAMES = {
    "ring3_privileged_instructions", "ring3_registers", "ring3_ports", "ring3_undefined_instructions",
    "ring3_selectors", "ring3_gates", "ring3_umip", "ring3_image_pages", "ring3_areas", "ring3_null",
    "ring3_window_end", "ring3_flags_kept", "smap_refuses_read", "smap_refuses_write", "smap_holds_in_handlers",
    "smep_refuses_execution", "user_read_by_kernel", "ist_debug", "ist_nmi", "ist_machine_check",
}  # fmt: skip


@pytest.mark.qemu
@pytest.mark.parametrize("layout", ["linux", "proposal"])
@pytest.mark.parametrize("cpu", ["la57", "la48"])
def test_ring_3_is_refused_what_it_must_not_do(passes: Boot, cpu: str, layout: str) -> None:
    done = passes(cpu, engine="qemu", layout=layout)
    assert {check.name for check in done.checks if check.ok} >= NAMES
    assert {skipped.name for skipped in done.skipped} <= {"ring3_returns"}


def test_what_a_machine_lacks_is_skipped_by_name(passes: Boot) -> None:
    """Unicorn lets ring 3 use every port and has no UMIP; its CPU with four levels has no SMAP."""
    skipped = {row.name for row in passes("la48").skipped}
    assert skipped >= {"ring3_ports", "ring3_umip", "smap"}


Change = tuple[str, str]
QEMU: dict[str, Any] = {"engine": "qemu"}
MISTAKES: list[tuple[str, str, list[Change], dict[str, Any], set[str]]] = [
    (
        "la57",
        "kernel_map.py",
        [("store16(tss + TSS_IO_MAP, TSS_SIZE)", "store16(tss + TSS_IO_MAP, 0)")],
        QEMU,
        {"ring3_ports", "ring3_io_map_closed"},
    ),
    (
        "la57",
        "kernel_map.py",
        [("trap_stub(vector), i + 1)", "trap_stub(vector), 0)")],
        {"layout": "proposal"},
        {"ist_debug", "ist_nmi", "ist_machine_check"},
    ),
    (
        "boot",
        "entry.S",
        [("        je      1f\n        clac\n1:\n        movq", "1:\n        movq")],
        {},
        {"smap_holds_in_handlers"},
    ),
    ("boot", "entry.S", [("        je      user_read_site\n        stac\n", "")], {}, {"user_read_by_kernel"}),
    (
        "la57",
        "cpu.py",
        [(f"        value |= CR4_{name}\n", "        pass\n") for name in ("SMEP", "SMAP", "UMIP", "MCE")],
        QEMU,
        {"smep_on_where_it_is", "smap_on_where_it_is", "umip_on_where_it_is", "machine_check_on_where_it_is"},
    ),
    ("la57", "syscall.py", [("va > user.task_size_max() - 8 or ", "")], {}, {"user_read_of_kernel_refused"}),
    ("la57", "traps.py", [("INTERRUPT_GATE: Final = 0x8E00", "INTERRUPT_GATE: Final = 0xEE00")], {}, {"ring3_gates"}),
    (
        "la57",
        "kernel_map.py",
        [("FIXADDR_TOP - PAGE_SIZE), KERNEL_RW)", "FIXADDR_TOP - PAGE_SIZE), KERNEL_RW | 4)")],
        {},
        {"ring3_areas"},
    ),
]


@pytest.mark.parametrize(
    ("part", "file", "changes", "options", "checks"),
    [pytest.param(*row, marks=[pytest.mark.qemu] if row[3] == QEMU else [], id=min(row[4])) for row in MISTAKES],
)
def test_each_protection_is_looked_for(
    boot: Boot,
    wrong_image: Callable[..., Image],
    part: str,
    file: str,
    changes: list[Change],
    options: dict[str, Any],
    checks: set[str],
) -> None:
    run = boot("la57", given=wrong_image(file, *changes, parts=(part,)), **options)
    assert {found.name for found in run.checks if not found.ok} >= checks, [run.event, run.output[-400:]]
