"""What a kernel puts where: areas by release and mode, each with its source."""

from fivefold.layout.areas import Area, Kind, area_named, area_of, check_tiling
from fivefold.layout.image import image_areas
from fivefold.layout.linux import linux_areas

__all__ = ["Area", "Kind", "area_named", "area_of", "check_tiling", "image_areas", "linux_areas"]
