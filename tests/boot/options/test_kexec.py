"""One kernel starts another, in every pair of modes; what cannot be started is refused, with a message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fivefold.boot import BootOptions, Image, Run
from fivefold.boot.judge.serial_text import judge_text
from fivefold.errors import MachineError
from fivefold.machine import Machine, Module
from fivefold.machine.qemu.engine import QemuMachine
from fivefold.units import MIB

Boot = Callable[..., Run]
ARRIVED = {"kexec_arrived", "kexec_first_kernel", "kexec_first_mode"}


PAIRS = pytest.mark.parametrize(
    ("first", "then", "mode"),
    [("", "", "la57"), ("", "no5lvl", "la48"), ("no5lvl", "", "la57"), ("no5lvl", "no5lvl", "la48")],
    ids=["5 to 5", "5 to 4", "4 to 5", "4 to 4"],
)


@PAIRS
def test_all_four_pairs_of_modes(passes: Boot, first: str, then: str, mode: str) -> None:
    arrives(passes("la57", cmdline=first, kexec=then), first, mode)


@pytest.mark.qemu
@PAIRS
def test_all_four_pairs_of_modes_and_all_cpus(passes: Boot, first: str, then: str, mode: str) -> None:
    """On a machine that models the change of mode itself; both kernels use both CPUs."""
    run = passes("la57", cmdline=first, kexec=then, engine="qemu", smp=2)
    arrives(run, first, mode)
    assert {check.name for check in run.checks} >= {"smp_all_arrived", "smp_same_root", "smp_shoot_down_seen"}


def arrives(run: Run, first: str, mode: str) -> None:
    assert run.mode == mode
    assert {check.name for check in run.checks if check.by == "outside"} >= ARRIVED
    assert run.facts["entered_levels"] == (4 if first else 5), "it is entered in the mode that was on"


def test_random_bases_on_the_way(passes: Boot) -> None:
    assert passes("la48", cmdline="kaslr=5", kexec="kaslr=6").mode == "la48"


def four_level_only(image: Image) -> bytes:
    """Our image, without the flag that says that it can be entered with five levels."""
    data = bytearray(image.place(image.load_address))
    at = data.index(b"Fivefold\0")
    assert data[at + 12] & 1
    data[at + 12] &= ~1
    return bytes(data)


def test_rs_13_five_levels_refuse_an_image_that_cannot(boot: Boot, image: Image) -> None:
    run = boot("la57", kexec="no5lvl", guest={"modules": (Module(four_level_only(image)),)})
    assert not run.ok
    assert "kexec: the image cannot be entered with five levels; kexec_down goes down to four first" in run.output


def test_rs_13_or_go_down_to_four_first(passes: Boot, image: Image) -> None:
    module = {"modules": (Module(four_level_only(image)),)}
    run = passes("la57", cmdline="kexec_down", kexec="no5lvl", guest=module)
    assert (run.mode, run.facts["entered_levels"]) == ("la48", 4)


@pytest.mark.qemu
def test_rs_13_down_through_the_low_pages_where_other_cpus_started(passes: Boot, image: Image) -> None:
    """The way down and the other CPUs' trampoline use the same low memory, one after the other."""
    module = {"modules": (Module(four_level_only(image)),)}
    run = passes("la57", engine="qemu", smp=2, cmdline="kexec_down", kexec="no5lvl", guest=module)
    assert (run.mode, run.facts["entered_levels"]) == ("la48", 4)


@pytest.fixture
def last_command(boot: Boot) -> Callable[..., str]:
    """What the first CPU told the others last, when a second kernel has run to its end that knows of no others."""

    def run(given: Image | None = None) -> str:
        kept: list[str] = []

        def watch(machine: Machine) -> None:
            assert isinstance(machine, QemuMachine)
            close = machine.close

            def look_and_close() -> None:
                kept.extend(machine._qmp.monitor("info lapic 0").splitlines())
                close()

            machine.close = look_and_close  # type: ignore[method-assign]

        guest = {"cmdline": "smp=2 kexec -- no5lvl"}
        done = boot("la57", engine="qemu", smp=2, kexec="no5lvl", guest=guest, given=given, before=watch)
        assert done.mode == "la48"
        return next(line.split()[1] for line in kept if line.startswith("ICR\t"))

    return run


@pytest.mark.qemu
def test_other_cpus_are_let_go_before_the_next_kernel(
    last_command: Callable[..., str], wrong_image: Callable[..., Image]
) -> None:
    """INIT, to all others: one that is only halted keeps the first kernel's tables and stack, and an NMI wakes it.

    QEMU's TCG keeps INIT pending until something else wakes a halted CPU, so what is seen is that it was sent.
    """
    assert last_command() == "0x000c4500"
    wrong = wrong_image("kexec.py", ("    smp.release_cpus()\n", ""), parts=("la57",))
    assert last_command(wrong) == "0x000c40f0", "the shoot-down of a page"


def test_four_levels_start_it_as_it_is(passes: Boot, image: Image) -> None:
    assert passes("la48", kexec="", guest={"modules": (Module(four_level_only(image)),)}).mode == "la48"


@pytest.mark.parametrize("word", ["kexec", "--", "hibernate=save", "hibernate=resume"])
def test_what_the_second_kernel_cannot_be_told(word: str) -> None:
    with pytest.raises(MachineError, match=f"^'{word}' on the command line needs more than the word; use --"):
        BootOptions(kexec=f"no5lvl {word}")


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ((), "kexec: the loader gave no module to start"),
        ((Module(b"no kernel" * 1000),), "kexec: the module is not a kernel image, or it is cut short"),
    ],
    ids=["no module", "no image"],
)
def test_what_is_no_kernel_is_refused(boot: Boot, modules: tuple[Any, ...], message: str) -> None:
    run = boot("la48", kexec="", guest={"modules": modules})
    assert not run.ok
    assert message in run.output


def test_an_image_cut_short_is_refused(boot: Boot, image: Image) -> None:
    run = boot("la57", kexec="", guest={"modules": (Module(image.place(image.load_address)[:30_000]),)})
    assert not run.ok
    assert "kexec: the module is not a kernel image, or it is cut short" in run.output


def test_rs_12_and_rfc_b19_the_jump_keeps_la57(
    boot: Boot, wrong_image: Callable[..., Image], failures: Callable[[Run], list[str]]
) -> None:
    """CR4 set to PAE alone clears LA57 in long mode: a fault, without an IDT that could take it."""
    old = "        andq    $~0x80, %rax\n        site    site_kexec_cr4\\which\n"
    wrong = wrong_image("entry.S", (old, old.replace("$~0x80", "$0x20")))
    run = boot("la57", kexec="", given=wrong)
    assert not run.ok
    assert any("kexec_arrived" in line for line in failures(run)), failures(run)


@pytest.mark.parametrize("seed", [1, 50])
def test_a_chain_of_four_kernels_at_random_places(passes: Boot, seed: int) -> None:
    """Each lies on none of those before it, whose reports are still there in the end."""
    lines = [f"kaslr={seed + i}{' no5lvl' if i == 1 else ''}" for i in range(3)]
    run = passes("la57", cmdline=f"kaslr={seed + 3}", kexec=" kexec -- ".join(lines))
    names = {f"kexec_{which}_{what}" for which in ("first", "2", "3") for what in ("kernel", "mode")}
    assert {check.name for check in run.checks} >= {"kexec_arrived", *names}
    assert run.mode == "la57"


def test_a_text_without_the_second_kernel_is_no_pass(passes: Boot) -> None:
    """What a machine leaves that triple-faults at the jump."""
    whole = passes("la57", kexec="no5lvl").output
    first = whole[: whole.rindex("TAP version 14")]
    assert judge_text(whole.encode()).ok
    assert [report.ok for report in judge_text(first.encode()).reports] == [True]
    assert not judge_text(first.encode()).ok


def test_a_command_line_is_not_cut_on_the_way(boot: Boot) -> None:
    """What is told of earlier kernels comes before it; "kaslr=123" would become "kaslr=12"."""
    run = boot("la57", kexec="x" * 4040 + " kaslr=123")
    assert not run.ok
    assert "# kexec: the next kernel's command line would be cut short" in run.output


@pytest.mark.qemu
def test_a_module_that_qemu_would_put_over_the_image_is_refused(boot: Boot) -> None:
    """Its loader asks only how much memory there is; elsewhere the two are kept apart."""
    top = {"memory": 63 * MIB, "load_address": 62 * MIB, "kexec": ""}
    assert boot("la48", engine="unicorn", **top).ok
    with pytest.raises(MachineError, match=r"puts the module of .* over the image, which ends at .*; load it lower"):
        boot("la48", engine="qemu", **top)
