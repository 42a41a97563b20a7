"""Secondary CPUs: the mode and the root of the first, mappings seen and forgotten by all, refusal of a mismatch."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fivefold.boot import BootOptions, Image, Run
from fivefold.boot.judge.smp_checks import cpu_checks
from fivefold.errors import MachineError
from fivefold.machine import Guest, start
from fivefold.machine.base import Registers

Boot = Callable[..., Run]

GUEST_CHECKS = {
    "smp_all_arrived", "smp_none_refused", "smp_same_mode", "smp_same_root", "smp_mapping_seen",
    "smp_mapping_by_another", "smp_mapping_by_another_seen", "smp_shoot_down_acknowledged", "smp_shoot_down_seen",
    "smp_shoot_down_of_anothers_page", "smp_io_map_closed", "smp_same_protections", "smp_own_stacks",
    "smp_low_page_forgotten",
}  # fmt: skip
OUTSIDE_CHECKS = {"smp_count", "smp_same_mode", "smp_same_root"}


def smp_names(run: Run, by: str) -> set[str]:
    return {check.name for check in run.checks if check.by == by and check.name.startswith("smp_")}


@pytest.mark.qemu
@pytest.mark.parametrize(("cpu", "count"), [("la57", 3), ("la48", 2)])
def test_all_cpus_share_mode_and_root_inv_11(passes: Boot, cpu: str, count: int) -> None:
    run = passes(cpu, engine="qemu", smp=count)
    assert run.mode == cpu
    assert (smp_names(run, "guest"), smp_names(run, "outside")) == (GUEST_CHECKS, OUTSIDE_CHECKS)


@pytest.mark.qemu
def test_with_random_bases_shadow_and_no5lvl(passes: Boot) -> None:
    assert passes("la57", engine="qemu", smp=2, cmdline="no5lvl kaslr=5 kasan").mode == "la48"


@pytest.mark.qemu
def test_a_cpu_without_the_mode_of_the_first_is_refused_r2_6(boot: Boot) -> None:
    run = boot("la57", engine="qemu", smp=2, guest={"last_cpu": "la48"})
    failed = {check.name for check in run.checks if not check.ok and check.by == "guest"}
    assert failed == {"smp_all_arrived", "smp_none_refused"}
    assert "CPUs refused that lack the paging mode of the first: 0x0000000000000001" in run.output


@pytest.mark.qemu
def test_rs_29_a_trampoline_root_without_all_kernel_entries(boot: Boot, wrong_image: Callable[..., Image]) -> None:
    """The last entry alone maps the image, and the first access to the direct map resets the machine."""
    all_entries = "copy64(root + 8 * 256, top + 8 * 256, 256)"
    wrong = wrong_image("smp.py", (all_entries, "copy64(root + 8 * 511, top + 8 * 511, 1)"), parts=("la57",))
    assert boot("la57", engine="qemu", smp=2, given=wrong).event.startswith("triple fault on CPU 1: #PF")


@pytest.mark.qemu
def test_a_cpu_with_more_than_the_first_follows_it(passes: Boot) -> None:
    assert passes("la48", engine="qemu", smp=2, guest={"last_cpu": "la57"}).mode == "la48"


def test_one_cpu_on_unicorn_is_said(passes: Boot) -> None:
    """What an engine cannot do is skipped, where that engine was asked for."""
    run = passes("la57", engine="unicorn", smp=2)
    assert [tuple(item) for item in run.skipped if item.name == "smp"] == [("smp", "unicorn has one CPU, not 2")]
    assert not smp_names(run, "guest")


def test_the_engine_refuses_more_cpus_than_it_has() -> None:
    with pytest.raises(MachineError, match=r"^the engine unicorn has one CPU, not 2; use qemu$"):
        start("unicorn", Guest(b"", cpus=2))


@pytest.mark.parametrize("count", [0, -1, 65])
def test_impossible_counts(count: int) -> None:
    with pytest.raises(MachineError, match=rf"^{count} CPUs; expected 1 to 64$"):
        BootOptions(smp=count)


@pytest.mark.parametrize("given", [{"cmdline": "smp=2"}, {"kexec": "no5lvl smp=2"}])
def test_a_count_that_the_machine_does_not_know_of(given: dict[str, str]) -> None:
    with pytest.raises(MachineError, match=r"^'smp=2' on the command line needs more than the word; use --smp$"):
        BootOptions(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize("word", ["smp=0", "smp=65", "smp=two", "smp="])
def test_the_kernel_refuses_what_is_no_count(boot: Boot, word: str) -> None:
    run = boot("la48", guest={"cmdline": word})
    assert "smp= on the command line needs a number of CPUs from 1 to 64" in run.output
    assert not run.ok


def registers(**changes: int) -> Registers:
    names = [name for name in Registers.__dataclass_fields__ if name not in ("gdt", "idt")]
    return Registers(**{**dict.fromkeys(names, 0), "cr3": 0x5000, "cr4": 0x1020, "efer": 0xD00, **changes})


@pytest.mark.parametrize(
    ("other", "failed", "detail"),
    [
        ({}, None, ""),
        ({"cr3": 0x6000}, "smp_same_root", "CPUs [1] have another CR3 than the first"),
        ({"cr4": 0x20}, "smp_same_mode", "CPUs [1] differ from the first in CR4.LA57 or EFER"),
        ({"efer": 0x500}, "smp_same_mode", "CPUs [1] differ from the first in CR4.LA57 or EFER"),
    ],
)
def test_from_outside(other: dict[str, int], failed: str | None, detail: str) -> None:
    checks = cpu_checks([registers(), registers(**other)], 2)
    assert [(c.name, c.detail) for c in checks if not c.ok] == ([(failed, detail)] if failed else [])


def test_from_outside_counts() -> None:
    assert cpu_checks([registers()], 2)[0].detail == "the machine has 1 CPUs, expected 2"
