"""NMIs where they are hard to take, and machine checks: survived, or the documented stop. `bench/nmi.py` sends them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fivefold.boot import Image
from fivefold.errors import MachineError
from fivefold.machine import Exit

BENCH = Path(__file__).parents[3] / "bench"
PANIC = 0x12


@pytest.fixture
def nmi(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`bench/nmi.py`; the packages that it makes do not outlive the test."""
    import sys

    monkeypatch.syspath_prepend(str(BENCH))
    import nmi

    yield nmi
    for module in [module for module in sys.modules if module.startswith("nmi_kernel")]:
        del sys.modules[module]


@pytest.mark.qemu
def test_an_nmi_at_every_instruction_of_the_system_call_path_is_survived(nmi: Any, tmp_path: Path) -> None:
    """In the layout without an entry area, whose stacks lie in the image; for some of it RSP is the program's."""
    assert nmi.try_syscall(tmp_path, "la57", "proposal")


@pytest.mark.qemu
def test_without_a_stack_of_its_own_an_nmi_there_is_fatal(nmi: Any, tmp_path: Path) -> None:
    """So the test above would see it."""
    mistake = {"kernel_map.py": (("trap_stub(vector), i + 1)", "trap_stub(vector), 0)"),)}
    with contextlib.suppress(MachineError):  # the machine is gone in the middle
        assert not nmi.try_syscall(tmp_path, "la57", "proposal", mistake)


@pytest.mark.qemu
def test_an_nmi_at_every_instruction_of_another_cpus_start_is_survived(nmi: Any, tmp_path: Path) -> None:
    """Each arrives before the instruction that it is sent at, and is counted there."""
    assert nmi.try_secondary(tmp_path, "la48")


@pytest.mark.qemu
def test_without_its_gate_an_nmi_there_is_fatal(nmi: Any, tmp_path: Path) -> None:
    """So the test above would see it."""
    mistake = {"smp.py": (*nmi.SENDS_NMIS["smp.py"], ("    move_gate(idt + 16)\n", ""))}
    with contextlib.suppress(MachineError, AssertionError):  # the machine is gone in the middle
        assert not nmi.try_secondary(tmp_path, "la48", mistake)


@pytest.mark.qemu
@pytest.mark.parametrize("layout", ["linux", "proposal"])
def test_a_machine_check_where_rsp_is_the_programs_stops_in_one_line(
    nmi: Any, image: Image, tmp_path: Path, layout: str
) -> None:
    with nmi.stopped(image, tmp_path, "la57", layout=layout) as stub:
        stub.go_to(image.symbols["syscall_entry"])
        stub.machine.inject_machine_check()
        stub.gdb.ask("D")
        stub.done.set()
        assert stub.machine.run(60.0) == Exit(PANIC)
        assert b"\nBail out! panic: unexpected exception 18, error code 0x0" in stub.machine.output
