"""Where physical bytes live."""

from fivefold.memory.base import Extent, PhysMemory, PhysReader, Ram

__all__ = ["Extent", "PhysMemory", "PhysReader", "Ram"]
