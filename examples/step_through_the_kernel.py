"""Functions of the kernel as plain Python, to step through with a debugger.

``PYTHONPATH=src python -m pdb examples/step_through_the_kernel.py``; break in the kernel's own source by file and line,
as docs/teach.md shows.
"""

from fivefold.metal.program import Program
from fivefold.metal.run import interpreter

PGTABLE = "fivefold.kernel.paging.pgtable"
ADDRESS = 0xFF11_0000_0000_0000

kernel = interpreter.load(Program((PGTABLE,), roots=(f"{PGTABLE}.*",)))
for five_levels in (1, 0):
    kernel.call("pgtable.set_mode", five_levels)
    top, below = kernel.call("pgtable.pgd_index", ADDRESS), kernel.call("pgtable.p4d_index", ADDRESS)
    print(f"{'five' if five_levels else 'four'} levels: entry {top} of the root, then entry {below} of the P4D table")
