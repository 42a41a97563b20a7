"""The info word of a scanned range, taken apart: kind, level and rights in one integer.

`kernel/scan/scan_ranges.py` puts it together and has the numbers. Each function takes one word, or a column of them.
"""

from __future__ import annotations

from typing import Any, Final, overload

import numpy as np
import numpy.typing as npt

from fivefold.kernel.scan.scan_ranges import ALL_RIGHTS, KIND_MASK, LEVEL_SHIFT, RIGHTS_SHIFT

Words = npt.NDArray[np.uint64]
LEVEL_MASK: Final = (1 << RIGHTS_SHIFT - LEVEL_SHIFT) - 1


@overload
def kind_of(info: int) -> int: ...
@overload
def kind_of(info: Words) -> Words: ...
def kind_of(info: Any) -> Any:
    """Return the kind: one of `scan_ranges`' MAPPED, MALFORMED, UNREADABLE and REPEAT."""
    return info & KIND_MASK


@overload
def level_of(info: int) -> int: ...
@overload
def level_of(info: Words) -> Words: ...
def level_of(info: Any) -> Any:
    """Return the level of the entries, 1 for the PT."""
    return info >> LEVEL_SHIFT & LEVEL_MASK


@overload
def rights_of(info: int) -> int: ...
@overload
def rights_of(info: Words) -> Words: ...
def rights_of(info: Any) -> Any:
    """Return the effective rights: the sum of `scan_ranges`' WRITE, USER and EXECUTE."""
    return info >> RIGHTS_SHIFT & ALL_RIGHTS
