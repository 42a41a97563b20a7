"""A boot's report at widths of terminals, as ``vectors/boot_widths.txt`` has it: side by side where there is room."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fivefold.boot import BootReport, Bounds, Check, Run, Skipped
from fivefold.report.console import report_console
from fivefold.report.text.boot import print_boot

VECTORS = Path(__file__).with_name("vectors") / "boot_widths.txt"
WIDTHS = (40, 80, 120, 200)
LIMIT = "this machine lets ring 3 use every port, whatever the TSS says"


def run_of(cpu: str, levels: int, base: int, ok: bool) -> Run:
    """What a boot may have come to; one of its checks fails where it is not *ok*."""
    facts = {
        "entered_levels": 0,
        "load_address": 0x100_0000,
        "ram_bytes": 523900 << 10,
        "direct_2m": 254,
        "direct_4k": 927,
    }
    checks = (Check("completed", "outside", True, "exit with code 16"), Check("direct_map", "guest", ok, "0x1 for 0x2"))
    return Run(
        cpu=cpu,
        engine="unicorn",
        entry="pvh",
        mode=cpu,
        levels=levels,
        reason="the CPU has LA57" if levels == 5 else "the CPU lacks LA57",
        event="exit with code 16",
        areas={
            "direct_map": Bounds(base, base + (1 << 46)),
            "vsyscall": Bounds(0xFFFFFFFFFF600000, 0xFFFFFFFFFF601000),
        },
        variables={"pgdir_shift": 48 if levels == 5 else 39},
        facts=facts,
        checks=checks,
        skipped=(Skipped("ring3_ports", LIMIT),),
        instructions=3_988_402,
        seconds=1.5,
    )


REPORT = BootReport((run_of("la57", 5, 0xFF11 << 48, True), run_of("la48", 4, 0xFFFF8880 << 32, False)), ())


def printed(width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The report on a terminal of *width* columns."""
    monkeypatch.setenv("COLUMNS", str(width))
    print_boot(REPORT, report_console(piped=160))
    return "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines()) + "\n"


@pytest.mark.parametrize("width", WIDTHS)
def test_a_boot_is_as_pinned(width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    parts = re.split(r"^== (\d+)\n", VECTORS.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    pinned = {int(number): text for number, text in zip(*[iter(parts)] * 2, strict=True)}
    text = printed(width, monkeypatch, capsys)

    assert text == pinned[width]
    assert max(map(len, text.splitlines())) <= width
    # Addresses stay in one piece, and both columns stand beside each other where two addresses fit.
    assert text.count("0xff11000000000000") == text.count("0xffff888000000000") == 1
    assert ("CPU with LA57" in text.splitlines()[0] and "CPU without LA57" in text.splitlines()[0]) is (width >= 80)
