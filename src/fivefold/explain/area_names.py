"""In which area an address lies, and how that is known: from memory, from the log, or only from the documents.

Linux moves its direct map, vmalloc and vmemmap at each boot, unless `nokaslr` forbids it, and its image within a
gibibyte. So the documents' map names the areas that never move; the others are named where memory shows their
bases, or the log says that nothing is randomised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from fivefold.arch import PagingMode
from fivefold.errors import LayoutError
from fivefold.explain.logs.trace import Placement
from fivefold.explain.rules.mode_evidence import release_number
from fivefold.layout import Area, area_of, linux_areas
from fivefold.units import GIB, MIB

if TYPE_CHECKING:
    from fivefold.survey.guest.areas import AreaMap

DEFAULT_RELEASE: Final = "6.1"
"""Its map holds since 4.20."""

OLD_RELEASE: Final = "4.12"
"""The oldest map that is known; since 2.6.31 the direct map began where it does there."""
_OLDEST_MAP: Final = (4, 12)
_FIRST_TO_MOVE: Final = (4, 8)
"""The first release that moves its direct map, vmalloc and vmemmap."""
_FIRST_TO_SLIDE: Final = (3, 14)
"""The first release that can move its image, and then keeps the gibibyte above for it whether it moves or not."""

_MOVABLE: Final = frozenset({"direct_map", "vmalloc", "vmemmap"})
KERNEL_IMAGE: Final = 0xFFFF_FFFF_8000_0000
_RANDOM_MODULES: Final = KERNEL_IMAGE + GIB
"""Where the modules begin in a kernel that may move its image; without that they begin 512 MiB lower."""
_PLAIN_MODULES: Final = KERNEL_IMAGE + 512 * MIB
_MODULES_OR_IMAGE: Final = "in the modules of Linux, or, if it can move its image, in the gibibyte kept for that"
_NOT_LINUX: Final = ("UEFI report", "Xen report", "FreeBSD report", "NetBSD report", "OpenBSD report", "illumos report",
                     "Windows bug check", "Darwin panic", "coreboot report", "kernel's own report", "VirtualBox log",
                     "VMware log")  # fmt: skip


class NamedArea(NamedTuple):
    """*name* is None where it is not known; *would_be* is then the area if nothing is randomised."""

    name: str | None
    area: Area | None
    would_be: str | None = None
    why: str | None = None
    either: str | None = None
    """The areas that it may be in, where the source does not decide."""


@dataclass(slots=True)
class AreaNames:
    """Names areas for one explanation. *release* None takes the newest map; *from_memory* asks the memory, once."""

    release: str | None = None
    placement: Placement = field(default_factory=Placement)
    dialect: str = ""
    rsp: int | None = None
    from_memory: Callable[[], AreaMap | None] | None = None
    _map: AreaMap | None = None
    _asked: bool = False

    @property
    def may_be_linux(self) -> bool:
        """Whether the source does not say that the kernel is another one."""
        return self.dialect not in _NOT_LINUX

    def at(self, va: int, mode: PagingMode) -> NamedArea:
        """The area of *va* in *mode*."""
        area = area_of(self.documents(mode), va)
        name = area.name if area else None
        if area is not None and area.kind in ("user", "non_canonical"):
            return NamedArea(name, area)
        if (found := self._memory()) is not None and found.areas:
            return NamedArea(found.name_at(va), area, why=found.how)
        if not self.may_be_linux:
            return NamedArea(None, None)
        return self._by_log(va, name, area, mode)

    def _by_log(self, va: int, name: str | None, area: Area | None, mode: PagingMode) -> NamedArea:
        placement = self.placement
        number = release_number(self.release)
        is_fixed = placement.fixed or (number is not None and number < _FIRST_TO_MOVE)
        if _PLAIN_MODULES <= va < _RANDOM_MODULES:
            if placement.slide or placement.may_slide:
                return NamedArea("kernel_image", area, why="the log has a kernel whose image may move within 1 GiB")
            is_old = number is not None and number < _FIRST_TO_SLIDE
            return NamedArea(name, area) if is_old else NamedArea(None, area, either=_MODULES_OR_IMAGE)
        is_movable = name in _MOVABLE or (area is not None and area.kind == "hole" and va < KERNEL_IMAGE - 64 * GIB)
        if not is_movable or is_fixed:
            return NamedArea(name, area)
        if not placement.slide and self._is_at_default(mode):
            return NamedArea(name, area, why="RSP is where vmalloc begins if nothing is randomised")
        return NamedArea(None, area, name if name in _MOVABLE else None)

    def _is_at_default(self, mode: PagingMode) -> bool:
        """Whether the kernel's stack lies in the first gibibyte of vmalloc at its default base.

        Bases are random in steps of 1 GiB over thousands of them, so a stack there is of a kernel that moves nothing.
        """
        if self.rsp is None:
            return False
        start = next((area.start for area in self.documents(mode) if area.name == "vmalloc"), None)
        return start is not None and start <= self.rsp < start + GIB

    def documents(self, mode: PagingMode) -> tuple[Area, ...]:
        """The map of the documents."""
        levels = len(mode.levels)
        number = release_number(self.release)
        if number is not None and number < _OLDEST_MAP:
            return linux_areas(OLD_RELEASE, levels)  # the map is that of every release before it
        try:
            return linux_areas(self.release or DEFAULT_RELEASE, levels)
        except LayoutError:
            return linux_areas(DEFAULT_RELEASE, levels)

    def _memory(self) -> AreaMap | None:
        if not self._asked and self.from_memory is not None:
            self._asked = True
            self._map = self.from_memory()
        return self._map
