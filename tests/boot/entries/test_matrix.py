"""The matrix: whatever the entry, the layout and the place, the mode is a function of the CPU and `no5lvl` only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fivefold.arch import Cr4
from fivefold.boot import Image, Run
from fivefold.boot.command_line import LAYOUTS
from fivefold.boot.run import VARIABLES
from fivefold.layout import image_areas
from fivefold.machine import Machine, MapRow
from fivefold.machine.unicorn.engine import UnicornMachine
from fivefold.units import GIB, MIB

PLAIN_ENTRIES = ("pvh", "long48", "long57")
"""Those that need no firmware."""

Boot = Callable[..., Run]
MATRIX = [
    (cpu, entry, cmdline, layout)
    for cpu in ("la57", "la48")
    for entry in PLAIN_ENTRIES
    for cmdline in ("", "no5lvl")
    for layout in LAYOUTS
    if not (cpu == "la48" and entry == "long57") and (layout == "linux" or entry == "pvh")
]


@pytest.mark.parametrize(("cpu", "entry", "cmdline", "layout"), MATRIX, ids=[" ".join(row) for row in MATRIX])
def test_mode_is_a_function_of_cpu_and_no5lvl(passes: Boot, cpu: str, entry: str, cmdline: str, layout: str) -> None:
    run = passes(cpu, entry=entry, cmdline=cmdline, layout=layout)
    mode = "la57" if (cpu, cmdline) == ("la57", "") else "la48"
    assert (run.mode, run.levels) == (mode, 5 if mode == "la57" else 4)
    assert run.facts["entered_levels"] == {"pvh": 0, "long48": 4, "long57": 5}[entry]
    bounds = {area.name: (area.start, area.end) for area in image_areas(layout, run.levels)}
    assert {name: tuple(area) for name, area in run.areas.items()}.items() <= bounds.items()


def test_checks_and_variables_are_the_same_for_every_entry(passes: Boot) -> None:
    runs = [passes("la57", entry=entry) for entry in ("pvh", "long57")]
    names = [{(check.name, check.by) for check in run.checks} for run in runs]
    apart = {name for name, _ in names[0] ^ names[1]}
    assert all(name.startswith("mode_switch") for name in apart), "but for the switch itself"
    assert len({tuple(sorted(run.variables.items())) for run in runs}) == 1
    assert set(runs[0].variables) == set(VARIABLES)


PLACES = [
    2 * MIB,
    4 * MIB,
    16 * MIB,
    30 * MIB,
    62 * MIB,
    128 * MIB - 2 * MIB,
    GIB - 2 * MIB,
    GIB,
    2 * GIB - 2 * MIB,
    4 * GIB - 2 * MIB,
]


def memory_at(load: int) -> dict[str, Any]:
    """A guest with 16 MiB of low memory, and 4 MiB around *load*, at most to the end of what this CPU reaches."""
    low = (MapRow(0, 0x9_FC00), MapRow(0x9_FC00, MIB, 2), MapRow(MIB, 16 * MIB))
    return {"memory": (*low, MapRow(load, min(load + 4 * MIB, 1 << 40))) if load >= 16 * MIB else low}


@pytest.mark.parametrize("load", PLACES, ids=hex)
def test_load_addresses(passes: Boot, load: int) -> None:
    """The lowest that there is, the highest for the 32-bit entry, and places that cross a border."""
    for cpu in ("la57", "la48")[: 2 if load in (PLACES[0], PLACES[-1]) else 1]:
        run = passes(cpu, load_address=load, memory=4 * GIB, guest=memory_at(load))
        assert run.facts["load_address"] == load
        assert run.variables["phys_base"] == (load - 16 * MIB) & (1 << 64) - 1


def test_the_highest_place_of_a_pc(passes: Boot) -> None:
    """The end of memory below the PCI hole."""
    passes("la57", load_address=3 * GIB - 2 * MIB, memory=3 * GIB)


HIGH = [4 * GIB, 4 * GIB + 2 * MIB, 5 * GIB - 2 * MIB, 512 * GIB - 2 * MIB, (1 << 40) - 2 * MIB]


ABOVE = [("long48", "", load) for load in HIGH] + [("long57", word, HIGH[0]) for word in ("", "no5lvl")]


@pytest.mark.parametrize(("entry", "cmdline", "load"), ABOVE, ids=[f"{row[0]} {row[1]} {row[2]:#x}" for row in ABOVE])
def test_rs_02_image_above_4_gib(passes: Boot, entry: str, cmdline: str, load: int) -> None:
    """The change of mode runs below 4 GiB, wherever the image is; the last place is the end of what the CPU reaches."""
    run = passes("la57", entry=entry, cmdline=cmdline, load_address=load, guest=memory_at(load))
    assert run.facts["load_address"] == load
    assert run.mode == ("la48" if cmdline else "la57")


@pytest.mark.parametrize("start_info", [0x2000, 0x9_0000, 20 * MIB, 32 * MIB - 0x1000], ids=hex)
def test_start_information_anywhere(passes: Boot, start_info: int) -> None:
    """Where the loader leaves it is not ours to choose."""
    passes("la57", entry="pvh" if start_info & MIB else "long48", guest={"start_info": start_info})


def test_rs_15_no_low_memory_but_what_is_needed(passes: Boot) -> None:
    """Nothing below 64 KiB is memory, so whoever reads there is seen."""
    rows = (MapRow(0x1_0000, 0x8_0000), MapRow(MIB, 32 * MIB))
    run = passes("la57", entry="long48", guest={"memory": rows})
    assert run.mode == "la57"


def test_rs_43_machine_check_enable_is_kept(boot: Boot, wrong_image: Callable[..., Image]) -> None:
    """A TDX guest that clears it takes an exception nobody expects: neither the change of mode nor the kernel does."""

    def is_kept(given: Image | None = None) -> bool:
        at_end: list[int] = []

        def prepare(machine: Machine) -> None:
            assert isinstance(machine, UnicornMachine)
            machine._engine.write("cr4", machine.registers().cr4 | Cr4.MCE)
            close = machine.close

            def look_and_close() -> None:
                at_end.append(machine.registers().cr4)
                close()

            machine.close = look_and_close  # type: ignore[method-assign]

        assert boot("la57", entry="long48", given=given, before=prepare).mode == "la57"
        return bool(at_end[0] & Cr4.MCE)

    assert is_kept()
    wrong = wrong_image(
        "cpu.py",
        ("CR4_KEPT: Final = CR4_LA57 | CR4_MCE", "CR4_KEPT: Final = CR4_LA57"),
        ("        value |= CR4_MCE\n", "        value |= 0\n"),
        parts=("la57",),
    )
    assert not is_kept(wrong)
