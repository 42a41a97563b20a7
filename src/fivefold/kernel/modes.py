"""The mode as a build's constants: host-side, for those who compile the kernel's sources.

`paging/pgtable.py` has the variables; this is the one place outside it that says what they are in each mode.
"""

from __future__ import annotations

from typing import Final

KERNEL: Final = "fivefold.kernel"
MODES: Final = {
    "la48": {"l5_enabled": 0, "pgdir_shift": 39, "ptrs_per_p4d": 1},
    "la57": {"l5_enabled": 1, "pgdir_shift": 48, "ptrs_per_p4d": 512},
}
"""The variables of the mode by the mode's name."""


def mode_bindings(levels: int, kernel: str = KERNEL) -> dict[str, int]:
    """Return the bindings that make *levels*, 4 or 5, the constant mode of a build of package *kernel*."""
    values = MODES[{4: "la48", 5: "la57"}[levels]]
    return {f"{kernel}.paging.pgtable.{name}": value for name, value in values.items()}
