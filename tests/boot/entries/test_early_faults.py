"""What goes wrong before the kernel has its own tables is said in one line on the serial port."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fivefold.boot import Image, Run

Boot = Callable[..., Run]
ONE_LINE = r"^Bail out! panic: unexpected exception {}, error code 0x{:016x}, address 0x{:016x}, rip 0x[0-9a-f]{{16}}$"


def told(run: Run, vector: int, error: int, address: int) -> bool:
    """Whether the serial text has the one line."""
    return re.search(ONE_LINE.format(vector, error, address), run.output, re.MULTILINE) is not None


def test_memory_beyond_the_cpu_is_no_endless_fault(boot: Boot, wrong_image: Callable[..., Image]) -> None:
    """A wild pointer of a loader's, at 2^45 on a CPU with 40 bits."""
    probe = "    given = PhysAddr(info)\n    report.set_word(0, start_info.field64(PhysAddr(1 << 45), 0))\n"
    wrong = wrong_image("main.py", ("    given = PhysAddr(info)\n", probe), parts=("la57",))
    run = boot("la57", given=wrong, timeout=5.0)
    assert told(run, 14, 0, 0xFF11_2000_0000_0000), run.output


@pytest.mark.parametrize("entry", ["pvh", "long48"])
def test_the_boot_code_tells_its_own_faults(boot: Boot, wrong_image: Callable[..., Image], entry: str) -> None:
    """Before the early tables there is nothing that maps on demand."""
    probe = "    report.put_hex(start_info.field64(PhysAddr(1 << 45), 0))\n    set_mode(read_cr4()"
    run = boot("la57", given=wrong_image("startup.py", ("    set_mode(read_cr4()", probe)), entry=entry, timeout=5.0)
    assert told(run, 14, 0, 1 << 45), run.output


@pytest.mark.qemu
@pytest.mark.parametrize(
    ("cpu", "lacks"),
    [
        ("qemu32", "long mode: it cannot run 64-bit code"),
        ("pentium3", "long mode: it cannot run 64-bit code"),
        ("pentium", "PAE"),
        ("qemu64,-cmov", "CMOV"),
        ("qemu64,level=0", "CPUID beyond leaf 0"),
    ],
)
def test_a_cpu_that_cannot_run_it_is_told_so(image: Image, tmp_path: Path, cpu: str, lacks: str) -> None:
    elf, serial = tmp_path / "image.elf", tmp_path / "serial.txt"
    elf.write_bytes(image.place(image.load_address))
    machine = f"-machine pc,accel=tcg -cpu {cpu} -m 64 -display none -nodefaults -no-reboot"
    exits = "-device isa-debug-exit,iobase=0xf4,iosize=4"
    command = f"qemu-system-x86_64 {machine} {exits} -serial file:{serial} -kernel {elf}"
    assert subprocess.run(command.split(), timeout=60, check=False).returncode == 2 * 0x12 + 1
    assert serial.read_text() == f"Bail out! fivefold: this CPU has no {lacks}\n"
