"""The image on Bochs, which honours global pages and the state of the serial port, as TCG does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fivefold.boot import Image, Run

Boot = Callable[..., Run]
pytestmark = pytest.mark.bochs


@pytest.fixture
def on_bochs(boot: Boot) -> Boot:
    def run(cpu: str, **options: object) -> Run:
        return boot(cpu, engine="bochs", entry="multiboot2", memory=64 << 20, timeout=60.0, **options)

    return run


@pytest.mark.parametrize("cpu", ["la57", "la48"])
def test_both_modes_on_two_cpus(on_bochs: Boot, cpu: str) -> None:
    run = on_bochs(cpu, smp=2)
    assert run.ok, [check for check in run.checks if not check.ok]
    assert (run.mode, run.event) == (cpu, "halted")
    assert sum(check.by == "guest" for check in run.checks) > 120
    assert [item.name for item in run.skipped if item.name == "outside"] == ["outside"]


def test_a_chain_with_options(on_bochs: Boot) -> None:
    run = on_bochs("la57", cmdline="kaslr=7 kasan", kexec="no5lvl pages=4k poweroff")
    assert run.ok, [check for check in run.checks if not check.ok]
    assert (run.mode, run.event) == ("la48", "powered off by the guest")
    assert {"kexec_arrived", "kexec_first_kernel", "kexec_first_mode"} <= {check.name for check in run.checks}


def test_a_triple_fault_is_told(on_bochs: Boot) -> None:
    run = on_bochs("la57", cmdline="fault=read-null")
    assert (run.ok, run.event) == (False, "triple fault")


def test_a_port_that_is_not_programmed_is_seen(on_bochs: Boot, wrong_image: Callable[..., Image]) -> None:
    wrong = wrong_image("report.py", ("    outb(LINE_CONTROL, EIGHT_BITS)\n", "    outb(LINE_CONTROL, 0)\n"))
    run = on_bochs("la48", given=wrong)
    assert not run.ok, "words of five bits"


def test_a_global_page_that_other_cpus_start_in_is_not_forgotten(
    on_bochs: Boot, wrong_image: Callable[..., Image], failures: Callable[[Run], list[str]]
) -> None:
    """They load CR3, which keeps global translations: TCG drops them all, so this is seen here only."""
    change = ("TRAMPOLINE: Final = PRESENT | RW", "TRAMPOLINE: Final = 0x100 | PRESENT | RW")
    run = on_bochs("la57", smp=2, given=wrong_image("smp.py", change, parts=("la57",)))
    assert [line.split(":")[0] for line in failures(run)] == ["guest smp_low_page_forgotten", "outside serial_report"]
