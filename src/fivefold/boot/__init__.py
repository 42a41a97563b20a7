"""Build the image, run it on machines, collect and judge the result.

``fivefold.boot()`` is `boot`: this package is the function it is named after (see `fivefold.callable_package`).
"""

from fivefold.boot.files import read_file, read_serial, write_file
from fivefold.boot.image.build import build_image
from fivefold.boot.image.elf_image import DEFAULT_LOAD_ADDRESS, MOST_BYTES, Image, parse
from fivefold.boot.options import CPUS, DEFAULT_MEMORY, BootOptions
from fivefold.boot.result import BootReport, Bounds, Check, Run, Skipped
from fivefold.boot.run import boot
from fivefold.callable_package import make_callable

make_callable(__name__)

__all__ = [
    "CPUS",
    "DEFAULT_LOAD_ADDRESS",
    "DEFAULT_MEMORY",
    "MOST_BYTES",
    "BootOptions",
    "BootReport",
    "Bounds",
    "Check",
    "Image",
    "Run",
    "Skipped",
    "boot",
    "build_image",
    "parse",
    "read_file",
    "read_serial",
    "write_file",
]
