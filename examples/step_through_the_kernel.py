"""A boot in plain Python, to step through with a debugger: what the kernel does between the loader and its own tables.

``PYTHONPATH=src python -m pdb examples/step_through_the_kernel.py``; break in the kernel's own source by file and line,
as docs/teach.md shows. Only what is assembly in the image is missing: the switch of CR3, and the processor.
"""

from fivefold.arch import LA48, LA57, AddressSpace, Cpu, PagingMode, regions
from fivefold.kernel.modes import mode_bindings
from fivefold.memory import Extent, Ram
from fivefold.metal.program import Program
from fivefold.metal.run import interpreter
from fivefold.units import PhysAddr

WINDOW = 1 << 56
"""Where the running code sees physical address 0."""
MEMORY = Extent(0x10_0000, 0x60_0000)
MODULES = ("paging.pgtable", "paging.layout", "paging.memblock", "paging.mapping", "areas.direct_map", "paging.phys")


def boot(mode: PagingMode) -> None:
    """Decide, take memory, build the direct map; then read with `arch` what was built."""
    ram = Ram([MEMORY])
    roots = tuple(f"fivefold.kernel.{name}.*" for name in MODULES)
    kernel = interpreter.load(Program(("fivefold.kernel.paging.phys",), mode_bindings(int(mode.top)), roots=roots))
    kernel.map_physical(ram, MEMORY.end - MEMORY.start, base=MEMORY.start, at=WINDOW + MEMORY.start)
    kernel.set("phys.phys_window", WINDOW)

    kernel.call("layout.layout_init", 0)
    kernel.call("memblock.add", MEMORY.start, MEMORY.end - MEMORY.start)
    top = kernel.call("memblock.allocate_table")
    kernel.call("direct_map.direct_map_init", top + WINDOW, 1, 0, 0)

    print(f"{mode.name}: the root is at {top:#x}")
    for run in regions(AddressSpace(ram, PhysAddr(top), mode, Cpu())):
        print(f"  {run}")


for chosen in (LA57, LA48):
    boot(chosen)
