"""The process that Bochs' CPU runs in: ``MODEL FD ENTRY IMAGE_END CASES_END``, as `bochscpu` starts it.

The wheel wants two functions of a C library newer than some that it installs on. They are bound when they are
called, and nothing here calls them, so the library is loaded with lazy binding. Its CPU model is fixed when it is
built: the function that makes the default one is redirected to the one that makes the wanted one.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from typing import Any, Final

from fivefold.conform.engines.bochscpu import MODELS
from fivefold.conform.places import ARENA, CASES, DATA_END, IMAGE

_PAGE: Final = 4096
_READ_WRITE_EXECUTE: Final = 7
_CODE_32, _DATA_32, _TSS_32, _LDT = 0xC09B, 0xC093, 0x8B, 0x82


def load() -> Any:
    """Import the library, its unused symbols unbound."""
    sys.setdlopenflags(os.RTLD_LAZY | os.RTLD_GLOBAL)
    import bochscpu
    import bochscpu.cpu
    import bochscpu.memory

    return bochscpu


def choose_model(library_file: str, model: str) -> None:
    """Redirect the function that makes the library's default CPU to the one that makes *model*."""
    default = next(iter(MODELS))
    if model == default:
        return
    library = ctypes.CDLL(library_file, os.RTLD_NOLOAD | os.RTLD_LAZY)
    source, target = (ctypes.cast(getattr(library, MODELS[name]), ctypes.c_void_p).value for name in (default, model))
    assert source and target
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if protect(source & -_PAGE, 2 * _PAGE, _READ_WRITE_EXECUTE):
        sys.exit("this system does not let the library's code be changed")
    jump = b"\x48\xb8" + target.to_bytes(8, "little") + b"\xff\xe0"  # mov rax, target; jmp rax
    ctypes.memmove(source, jump, len(jump))


def insert_ram(bochscpu: Any, fd: int, ends: dict[int, int]) -> object:
    """Give the guest the RAM behind *fd*: from each key of *ends* to its value. Keep what this returns."""
    ram = mmap.mmap(fd, 0)
    base = ctypes.addressof(ctypes.c_char.from_buffer(ram))
    for start, end in ends.items():
        for pa in range(start, end, _PAGE):
            bochscpu.memory.page_insert(pa, base + pa)
    return ram


def protected_mode(bochscpu: Any, entry: int) -> Any:
    """The state that PVH's entry wants: 32-bit protected mode, flat segments, no paging."""
    state = bochscpu.State()
    state.cr0, state.cr4, state.efer, state.rip, state.rflags = 0x11, 0, 0, entry, 2
    state.cs = _segment(bochscpu, 0x48, _CODE_32)
    for name in ("ds", "es", "ss", "fs", "gs"):
        setattr(state, name, _segment(bochscpu, 0x10, _DATA_32))
    state.tr, state.ldtr = _segment(bochscpu, 0x28, _TSS_32), _segment(bochscpu, 0, _LDT)
    return state


def _segment(bochscpu: Any, selector: int, attributes: int) -> Any:
    segment = bochscpu.Segment()
    segment.present, segment.selector, segment.base = True, selector, 0
    segment.limit, segment.attr = 0xFFFF_FFFF, attributes
    return segment


def main() -> None:
    """Run the payload to its HLT."""
    model, (fd, entry, image_end, cases_end) = sys.argv[1], map(int, sys.argv[2:6])
    bochscpu = load()
    choose_model(bochscpu._bochscpu.__file__, model)
    ram = insert_ram(bochscpu, fd, {IMAGE: image_end, ARENA: DATA_END, CASES: cases_end})
    session = bochscpu.Session()

    def missing(pa: int) -> None:
        """Memory that is not there, which a case met by a fault of the engine: give it a page of its own."""
        bochscpu.memory.page_insert(pa & -_PAGE, bochscpu.memory.allocate_host_page())

    session.missing_page_handler = missing
    session.cpu.state = protected_mode(bochscpu, entry)
    hook = bochscpu.Hook()
    hook.hlt = lambda session, _: session.stop()
    hook.reset = lambda session, *_: session.stop()
    session.run([hook])
    del ram
    # The library's own end would be a segmentation fault.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
