"""What a kernel puts where: areas by release and mode, each with its source."""

from fivefold.layout.areas import Area, AreaKind, area_named, area_of, check_tiling
from fivefold.layout.constants import LinuxConstants, linux_constants
from fivefold.layout.image import image_areas
from fivefold.layout.kasan import from_shadow, shadow_bounds, shadow_offset, to_shadow
from fivefold.layout.kaslr import Bases, default_bases, kaslr_bases, window_end, with_bases
from fivefold.layout.linux import linux_areas
from fivefold.layout.markers import KernelBuild, Marker, ptdump_markers
from fivefold.layout.versions import Version, has_moved_ldt, parse_version

__all__ = [
    "Area",
    "AreaKind",
    "Bases",
    "KernelBuild",
    "LinuxConstants",
    "Marker",
    "Version",
    "area_named",
    "area_of",
    "check_tiling",
    "default_bases",
    "from_shadow",
    "has_moved_ldt",
    "image_areas",
    "kaslr_bases",
    "linux_areas",
    "linux_constants",
    "parse_version",
    "ptdump_markers",
    "shadow_bounds",
    "shadow_offset",
    "to_shadow",
    "window_end",
    "with_bases",
]
