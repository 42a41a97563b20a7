"""The recorded faults: the first stated cause is the true one, with memory, from the log alone, from the core alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fivefold.explain import Explanation, explain

# case, rule, level, address, access: by tests/data/faults/cases.json
TRUE = """
missing_pml5e            not-present          PML5  ff11000000000000  read
nx_exec                  no-execute           PT    ffffffff80020000  fetch
noncanonical             non-canonical        -     0100000000000000  read
stack_unmapped           not-present          PDPT  ffffffff7ffffff8  write
toggle_la57_on           mode-change-refused  -     -                 -
rsvd_pte                 reserved-bit         PT    ffffffff80020010  read
l4_root_in_la57          wrong-depth          PML4  ffffffff8000010a  fetch
idt_unmapped             idt-not-mapped       PML4  fffffe0000000030  -
kernel_kasan_physbase_1  not-present          PD    ffffffff9cb15000  read
"""
# What the log alone tells: without tables a root of the wrong depth is an absent entry.
ALONE = {"l4_root_in_la57": "not-present"}
# The core does not hold the page at RIP, only CR2.
GUESSED = {"kernel_kasan_physbase_1"}
CASES = [line.split() for line in TRUE.split("\n") if line]
MODES = {"toggle_la57_on": "la48"}


def accused(told: Explanation) -> tuple[str, str, str]:
    """Rule, level and address as the table has them."""
    cause = told.cause
    return (
        cause.rule,
        cause.level.name if cause.level else "-",
        "-" if cause.address is None else f"{cause.address:016x}",
    )


@pytest.mark.parametrize(("name", "rule", "level", "address", "access"), CASES, ids=[case[0] for case in CASES])
def test_with_memory(data: Path, name: str, rule: str, level: str, address: str, access: str) -> None:
    told = explain(data / f"{name}.log", data / f"{name}.elf.xz")
    assert accused(told) == (rule, level, address)
    assert told.outcome == "triple-fault"
    assert told.mode == MODES.get(name, "la57")
    assert told.cause.confidence == ("likely" if rule == "wrong-depth" else "certain")
    guilty = next(one for one in told.exceptions if not one.finding.legitimate)
    assert access in ("-", guilty.access)


@pytest.mark.parametrize(("name", "rule", "level", "address", "access"), CASES, ids=[case[0] for case in CASES])
def test_log_alone(data: Path, name: str, rule: str, level: str, address: str, access: str) -> None:
    told = explain(data / f"{name}.log")
    assert accused(told) == (ALONE.get(name, rule), "-", address)
    assert told.outcome == "triple-fault"
    # Without the instruction a general protection fault is read off the registers.
    assert (told.cause.confidence == "guess") == (name in ("noncanonical", "toggle_la57_on"))


@pytest.mark.parametrize(("name", "rule", "level", "address", "access"), CASES, ids=[case[0] for case in CASES])
def test_core_alone(data: Path, name: str, rule: str, level: str, address: str, access: str) -> None:
    told = explain(data / f"{name}.elf.xz")
    assert accused(told) == (rule, level, address)
    assert told.cause.confidence == ("guess" if name in GUESSED else "likely")
    assert any("inferred from registers and memory" in remark for remark in told.remarks)


@pytest.mark.parametrize("name", [case[0] for case in CASES])
def test_exceptions_are_those_recorded(data: Path, name: str) -> None:
    record = next(case for case in json.loads((data / "cases.json").read_text()) if case["case"] == name)
    told = explain(data / f"{name}.log")
    pairs = [(one.raised.during, one.raised.vector) for one in told.exceptions if not one.finding.legitimate]
    wanted = [(None if old == "0xffffffff" else int(old, 16), int(new, 16)) for old, new in record["exceptions"]]
    # The log forgets that it delivers an INT3.
    assert [new for _, new in pairs] == [new for _, new in wanted]
    assert [old for old, _ in pairs][1:] == [old for old, _ in wanted][1:]


def test_reserved_bit_names_the_quirk_and_the_inference(data: Path) -> None:
    told = explain(data / "rsvd_pte.log", data / "rsvd_pte.elf.xz")
    evidence = " ".join(told.cause.evidence)
    assert "the error code is 0x8 where a CPU gives 0x9: QEMU's TCG reports a reserved bit with P clear" in evidence
    assert "is the one that the tables give" not in evidence
    assert "MAXPHYADDR of at most 45 is inferred" in evidence
    assert any("MAXPHYADDR" in text for text in told.unknown)


def test_kernel_forgot_phys_base(data: Path) -> None:
    name = "kernel_kasan_physbase_1"
    told = explain(data / f"{name}.log", data / f"{name}.elf.xz")
    evidence = " ".join(told.cause.evidence)
    assert "0xd200000 (phys_base) higher than linked" in evidence
    assert "that physical address is mapped at 0xffffffff8f915000" in evidence
    assert told.cause.legal[1] == "set P in the PD entry at 0x000000001c812728"


def test_phys_base_is_not_seen_everywhere(data: Path) -> None:
    told = explain(data / "nx_exec.log", data / "nx_exec.elf.xz")
    assert "phys_base" not in " ".join(told.cause.evidence)


def test_the_discussion_of_2017(data: Path) -> None:
    told = explain(data / "thread-2017-kasan-efi.log", addresses=[0xFFFF_FBFF_F07E_3A17])
    assert accused(told) == ("stack", "-", "ffffffff7ffffff8")
    assert told.mode == "la57"
    assert [one.raised.during for one in told.exceptions] == [None, 14, 8]
    evidence = " ".join(told.cause.evidence)
    assert "RSP = 0xffffffff80000000 is exactly the start of the kernel image mapping" in evidence
    assert "RDX = 0xdffffc0000000000 is the KASAN shadow offset" in evidence
    assert "in a hole below the kernel image" in evidence
    assert "no IST is used, so the same stack again" in told.exceptions[1].finding.sentence
    assert told.places[0].sentence == (
        "0xfffffbfff07e3a17 is in the KASAN shadow, the shadow of 0xffffffff83f1d0b8 in the kernel image"
    )
    assert any("RIP differs between exceptions of one delivery" in remark for remark in told.remarks)


HEALTHY = sorted((Path(__file__).parents[2] / "data" / "guests").glob("*.elf.xz"))


@pytest.mark.parametrize("core", HEALTHY, ids=[path.name.partition(".")[0] for path in HEALTHY])
def test_a_healthy_guest_is_not_accused(core: Path) -> None:
    """Frozen while idle: CR2 holds the address of some process's page fault, and nothing is wrong."""
    told = explain(core)
    assert (told.cause.rule, told.cause.confidence, told.exceptions) == ("unknown", "guess", ())
    assert told.cause.sentence == "no exception in the source, and nothing in registers or memory that would raise one"


def test_there_are_healthy_guests() -> None:
    assert HEALTHY
