"""Build the image: boot code with the mode as a variable, the kernel twice with it as a constant, one file.

The result depends on the sources alone, byte for byte, and is kept in the cache by their content.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Final

from fivefold.boot.image.elf_image import Image, Part, parse
from fivefold.errors import ImageError
from fivefold.kernel.modes import KERNEL, MODES, mode_bindings
from fivefold.kernel.paging.phys import LINK_ADDRESS
from fivefold.metal import cache
from fivefold.metal.build import sources_digest, toolchain
from fivefold.metal.emit.link import Group, Linked, link
from fivefold.metal.emit.worker import compiling
from fivefold.metal.program import Program
from fivefold.units import PAGE, VirtAddr

ASSEMBLY: Final = (
    "boot/entry.S",
    "boot/window.S",
    "boot/need.S",
    "smp/smp.S",
    "handover/hibernate.S",
    "efi/efi_call.S",
)
"""The boot code's assembly, in this order: the first defines the macros."""
FOR_32_BITS: Final = ("startup_32", "take_multiboot2")
"""Functions that the assembly calls in 32-bit code, there with ``_blob`` behind their names."""

_GROUPS: Final = (
    Group(".head", (".head",)),
    Group(".text", (".text",)),
    Group(".rodata", (".rodata",)),
    Group(".data", (".data",)),
    Group(".bss", (".bss",)),
    Group(".lowbss", (".lowbss",)),
)
_READ_EXECUTE, _READ_WRITE = 5, 6


def build_image() -> Image:
    """Return the image, from the cache if its sources have not changed."""
    return parse(cache.get_or_make(image_key(), lambda: _build().place()))


def image_key(package: Path | None = None) -> str:
    """Return the name of the image of *package*, ours by default, by all that it is made from, the compiler too."""
    package = package or Path(str(resources.files("fivefold")))
    return f"image {toolchain()} {sources_digest(package, ('units.py', 'kernel', 'boot'))}"


def _build() -> Image:
    first, second = MODES
    with compiling(kernel_program(second), f"{second}_") as other:
        objects = {"boot": boot_object(), first: kernel_object(first)}
        objects[second] = other()
    return link_image(objects)


def link_image(objects: Mapping[str, bytes]) -> Image:
    """Link the image from its objects: ``boot`` and the two copies of the kernel, by their names in `MODES`."""
    from fivefold.metal.emit.objects import assemble

    ordered = {name: objects[name] for name in ("boot", *MODES)}
    ordered["end"] = assemble(_assembly(KERNEL, "boot/end.S"))
    return _image(link(ordered, base=LINK_ADDRESS, groups=_GROUPS))


def kernel_program(mode: str, kernel: str = KERNEL) -> Program:
    """The kernel proper of package *kernel* with a mode of `MODES` as a constant."""
    levels = 4 + MODES[mode]["l5_enabled"]
    return Program((f"{kernel}.main",), bindings=mode_bindings(levels, kernel))


def kernel_object(mode: str, kernel: str = KERNEL) -> bytes:
    """Compile the kernel proper of package *kernel* for one mode of `MODES`, with the mode as a constant."""
    from fivefold.metal.emit.objects import compile_object

    return compile_object(kernel_program(mode, kernel), prefix=f"{mode}_")


def boot_object(kernel: str = KERNEL) -> bytes:
    """Compile the boot code of package *kernel*: the mode a variable, the assembly, and the 32-bit code inside it."""
    from fivefold.metal.emit.objects import compile_object

    program = Program((f"{kernel}.boot.startup", f"{kernel}.boot.move"))
    text = "".join(_assembly(kernel, name) for name in ASSEMBLY)
    return compile_object(program, asm=text + _code_for_32_bits(kernel))


def _code_for_32_bits(kernel: str) -> str:
    """What runs in 32-bit code, compiled for i386, as bytes in the assembly, since one object has one machine."""
    from fivefold.metal.emit.elf import read_object
    from fivefold.metal.emit.objects import compile_object

    program = Program((f"{kernel}.boot.startup32", f"{kernel}.boot.multiboot2"))
    found = read_object(compile_object(program, arch="i386"), "startup32")
    text = next(section for section in found.sections if section.name == ".text")
    rows = "\n".join(f".byte {','.join(map(str, text.data[i : i + 16]))}" for i in range(0, len(text.data), 16))
    starts = "".join(f".set {s.name}_blob, blob_32 + {s.value}\n" for s in found.symbols if s.name in FOR_32_BITS)
    return f'\n.section .head, "ax", @progbits\n.p2align 4\nblob_32:\n{rows}\n{starts}'


def _assembly(kernel: str, name: str) -> str:
    return (resources.files(kernel) / name).read_text()


def _image(linked: Linked) -> Image:
    trampoline = linked.symbols["trampoline_end"] - linked.symbols["trampoline_start"]
    if trampoline > PAGE:
        raise ImageError(f"the trampoline has {trampoline} bytes, its page has {PAGE}")
    data = linked.group(".data")
    flat = linked.flat()
    split = data.address - linked.base
    parts = (
        Part(linked.base, flat[:split], split, _READ_EXECUTE),
        Part(data.address, flat[split:], linked.symbols["_end"] - data.address, _READ_WRITE),
    )
    symbols = {name: value for name, value in linked.symbols.items() if not name.startswith(".")}
    return Image(VirtAddr(linked.base), parts, symbols)
