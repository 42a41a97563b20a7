"""One function of the kernel from its source to machine code, with the mode as a variable and as constants.

Prints the Python source, the LLVM text that the compiler writes for it, and the instructions with their bytes.
"""

import importlib
import inspect

import capstone

from fivefold.metal.check.check import check
from fivefold.metal.emit.elf import read_object
from fivefold.metal.emit.intrinsics import Target
from fivefold.metal.emit.llvm import write
from fivefold.metal.emit.objects import emit
from fivefold.metal.program import Program

PGTABLE = "fivefold.kernel.paging.pgtable"
NAME = "p4d_offset"


MODES = {
    "the mode is a variable": {},
    "four levels, as constants": {"l5_enabled": 0, "pgdir_shift": 39, "ptrs_per_p4d": 1},
    "five levels, as constants": {"l5_enabled": 1, "pgdir_shift": 48, "ptrs_per_p4d": 512},
}


def main() -> None:
    """Compile the function three times and print each stage."""
    print(inspect.getsource(getattr(importlib.import_module(PGTABLE), NAME)))
    for title, bindings in MODES.items():
        show(title, {f"{PGTABLE}.{name}": value for name, value in bindings.items()})


def show(title: str, bindings: dict[str, int]) -> None:
    """Print the function's LLVM text and its instructions, with *bindings*."""
    target = Target("x86_64", host=True)
    text = write(check(Program((PGTABLE,), roots=(f"{PGTABLE}.{NAME}",), bindings=bindings)), target)
    begin = text.index(f'define internal i64 @"pgtable.{NAME}()"')
    print(f"-- {title}\n\n{text[begin : text.index('}', begin) + 1]}\n")
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    for section in read_object(emit(text, target)).sections:
        if section.executable and section.size:
            for one in decoder.disasm(section.data, 0):
                print(f"{one.address:4x}  {one.bytes.hex(' '):30}  {one.mnemonic} {one.op_str}".rstrip())
    print()


if __name__ == "__main__":
    main()
