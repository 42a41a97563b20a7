"""Linux releases, as far as the layout turns on them."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from fivefold.errors import LayoutError

_RELEASE: Final = re.compile(r"v?(\d{1,3})\.(\d{1,4})(?:\.(\d{1,5}))?(?:-rc(\d{1,3}))?(?:[^0-9.].*)?", re.DOTALL)
_NOT_RC: Final = 1 << 16


class Version(NamedTuple):
    """A release that compares in order; *candidate* is the N of ``-rcN``, large when released."""

    major: int
    minor: int
    patch: int = 0
    candidate: int = _NOT_RC

    def __str__(self) -> str:
        patch = f".{self.patch}" if self.patch else ""
        candidate = f"-rc{self.candidate}" if self.candidate != _NOT_RC else ""
        return f"{self.major}.{self.minor}{patch}{candidate}"


OLDEST: Final = Version(4, 12)
"""The first release whose map is known here: the base of the 2017 proposal."""

NEWEST_READ: Final = Version(7, 1, 5)
"""The newest tree that the rows were read from; later releases get its rows, and say so."""


def parse_version(text: str) -> Version:
    """Read ``6.1``, ``4.20-rc1`` or a whole release string such as ``6.1.0-56-cloud-amd64``.

    Raises `LayoutError` for anything else and for releases before 4.12.

    >>> parse_version("4.20-rc1") < parse_version("4.20")
    True
    """
    match = _RELEASE.fullmatch(text.strip())
    if match is None:
        raise LayoutError(f"{text[:60]!r} is not a Linux release; expected a number such as 6.1")
    major, minor, patch, candidate = match.groups()
    version = Version(int(major), int(minor), int(patch or 0), int(candidate or _NOT_RC))
    if version < OLDEST:
        raise LayoutError(f"Linux {version} is older than the maps known here; expected {OLDEST} or newer")
    return version


def has_moved_ldt(version: Version) -> bool:
    """Since 4.20-rc2 and 4.19.5 the LDT remap lies below the direct map, which moved up by one slot.

    Commit d52888aa2753 ("x86/mm: Move LDT remap out of KASLR region on 5-level paging").
    """
    stable = (version.major, version.minor) == (4, 19) and version.patch >= 5
    return stable or version >= Version(4, 20, 0, 2)


def check_levels(levels: int) -> int:
    """Return *levels* when it is 4 or 5; `LayoutError` otherwise."""
    if levels not in (4, 5):
        raise LayoutError(f"{levels} levels of page tables; expected 4 or 5")
    return levels
