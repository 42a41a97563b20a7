"""Linux' map of virtual memory, by release and number of levels.

One row a fact, as the kernel's own memory-map document (``mm.rst``, before 5.x
``mm.txt``) prints it: both ends inclusive. The rows of one map tile all 64 bits.
From 0xfffffc0000000000 up both modes share their rows.

Errata of the documents that are corrected here:

- 5.0 and later print the five-level non-canonical hole with the four-level bounds, and
  the end of the KASAN shadow as fffffdffffffffff;
- 4.17 prints the five-level end of the KASAN shadow exclusively, all others inclusively;
- since 4.15 the five-level shadow is drawn from the start of its top-level slot,
  ffdf000000000000; the first byte that is the shadow of anything is ffdffc0000000000;
- 4.15 to 4.19.4 draw the five-level LDT remap as 4 PiB; one slot of 256 TiB is used;
- 7.1 prints the five-level user end one page too high.
"""

from __future__ import annotations

from typing import Final, Literal, cast

from fivefold import _arguments
from fivefold.errors import LayoutError
from fivefold.layout.areas import Area, AreaKind
from fivefold.layout.versions import (
    NEWEST_READ,
    Version,
    check_levels,
    has_moved_ldt,
    parse_version,
)
from fivefold.units import MIB

_USER: Final = {
    4: """
0000000000000000 00007fffffffffff user                      user
0000800000000000 ffff7fffffffffff non_canonical             non_canonical
""",
    5: """
0000000000000000 00ffffffffffffff user                      user
0100000000000000 feffffffffffffff non_canonical             non_canonical
""",
}

# Since 7.1 the document shows the page that user space never gets, and cuts the
# non-canonical hole at 2^63 for linear address masking.
_USER_7_1: Final = {
    4: """
0000000000000000 00007fffffffefff user                      user
00007ffffffff000 00007fffffffffff user_guard                guard
0000800000000000 7fffffffffffffff non_canonical             non_canonical
8000000000000000 ffff7fffffffffff non_canonical_supervisor  non_canonical
""",
    5: """
0000000000000000 00ffffffffffefff user                      user
00fffffffffff000 00ffffffffffffff user_guard                guard
0100000000000000 7fffffffffffffff non_canonical             non_canonical
8000000000000000 feffffffffffffff non_canonical_supervisor  non_canonical
""",
}

_OLD_DIRECT_MAP_4: Final = """
ffff800000000000 ffff87ffffffffff guard_hole                guard
ffff880000000000 ffffc7ffffffffff direct_map                mapped
ffffc80000000000 ffffc8ffffffffff hole_below_vmalloc        hole
"""

_REST_4: Final = """
ffffc90000000000 ffffe8ffffffffff vmalloc                   mapped
ffffe90000000000 ffffe9ffffffffff hole_below_vmemmap        hole
ffffea0000000000 ffffeaffffffffff vmemmap                   mapped
ffffeb0000000000 ffffebffffffffff hole_below_kasan_shadow   hole
ffffec0000000000 fffffbffffffffff kasan_shadow              mapped
"""

_REST_5: Final = """
ffa0000000000000 ffd1ffffffffffff vmalloc                   mapped
ffd2000000000000 ffd3ffffffffffff hole_below_vmemmap        hole
ffd4000000000000 ffd5ffffffffffff vmemmap                   mapped
ffd6000000000000 ffdffbffffffffff hole_below_kasan_shadow   hole
ffdffc0000000000 fffffbffffffffff kasan_shadow              mapped
"""

Era = Literal["4.12", "4.15", "4.20"]
"""The first release of each map: the proposal's, with CPU entry area, with the LDT remap moved."""

_LOW: Final[dict[tuple[Era, int], str]] = {
    ("4.12", 4): _OLD_DIRECT_MAP_4 + _REST_4,
    ("4.12", 5): """
ff00000000000000 ff0fffffffffffff guard_hole                guard
ff10000000000000 ff8fffffffffffff direct_map                mapped
ff90000000000000 ff91ffffffffffff hole_below_vmalloc        hole
ff92000000000000 ffd1ffffffffffff vmalloc                   mapped
ffd2000000000000 ffd3ffffffffffff hole_below_vmemmap        hole
ffd4000000000000 ffd5ffffffffffff vmemmap                   mapped
ffd6000000000000 ffd7ffffffffffff hole_below_kasan_shadow   hole
ffd8000000000000 fff7ffffffffffff kasan_shadow              mapped
fff8000000000000 fffffbffffffffff hole_above_kasan_shadow   hole
""",
    ("4.15", 4): _OLD_DIRECT_MAP_4 + _REST_4,
    ("4.15", 5): """
ff00000000000000 ff0fffffffffffff guard_hole                guard
ff10000000000000 ff8fffffffffffff direct_map                mapped
ff90000000000000 ff90ffffffffffff ldt_remap                 mapped
ff91000000000000 ff9fffffffffffff hole_below_vmalloc        hole
""" + _REST_5,
    ("4.20", 4): """
ffff800000000000 ffff87ffffffffff guard_hole                guard
ffff880000000000 ffff887fffffffff ldt_remap                 mapped
ffff888000000000 ffffc87fffffffff direct_map                mapped
ffffc88000000000 ffffc8ffffffffff hole_below_vmalloc        hole
""" + _REST_4,
    ("4.20", 5): """
ff00000000000000 ff0fffffffffffff guard_hole                guard
ff10000000000000 ff10ffffffffffff ldt_remap                 mapped
ff11000000000000 ff90ffffffffffff direct_map                mapped
ff91000000000000 ff9fffffffffffff hole_below_vmalloc        hole
""" + _REST_5,
}  # fmt: skip

_ESPFIX_TO_IMAGE: Final = """
ffffff0000000000 ffffff7fffffffff espfix                    mapped
ffffff8000000000 ffffffeeffffffff hole_below_efi_runtime    hole
ffffffef00000000 fffffffeffffffff efi_runtime               mapped
ffffffff00000000 ffffffff7fffffff hole_below_kernel_image   hole
ffffffff80000000 ffffffff9fffffff kernel_image              mapped
"""

_TOP_4_12: Final = f"""
fffffc0000000000 fffffeffffffffff hole_below_espfix         hole
{_ESPFIX_TO_IMAGE}
ffffffffa0000000 ffffffffff5fffff modules                   mapped
ffffffffff600000 ffffffffffdfffff vsyscall                  mapped
ffffffffffe00000 ffffffffffffffff hole_top                  hole
"""

_TOP_4_15: Final = f"""
fffffc0000000000 fffffdffffffffff hole_below_cpu_entry_area hole
fffffe0000000000 fffffe7fffffffff cpu_entry_area            mapped
fffffe8000000000 fffffeffffffffff hole_below_espfix         hole
{_ESPFIX_TO_IMAGE}
ffffffffa0000000 fffffffffeffffff modules                   mapped
ffffffffff000000 ffffffffff5fffff fixmap                    mapped
ffffffffff600000 ffffffffff600fff vsyscall                  mapped
ffffffffff601000 ffffffffffdfffff hole_above_vsyscall       hole
ffffffffffe00000 ffffffffffffffff hole_top                  hole
"""

_TOP: Final[dict[Era, str]] = {"4.12": _TOP_4_12, "4.15": _TOP_4_15, "4.20": _TOP_4_15}

_ERA_RELEASES: Final[dict[Era, str]] = {
    "4.12": "Linux 4.12 to 4.14",
    "4.15": "Linux 4.15 to 4.19.4",
    "4.20": "Linux 4.19.5, 4.20 and later",
}


def _rows(table: str, source: str) -> list[Area]:
    areas = []
    for line in filter(None, map(str.strip, table.splitlines())):
        start, last, name, kind = line.split()
        areas.append(Area(name, int(start, 16), int(last, 16) + 1, cast(AreaKind, kind), source))
    return areas


def era_of(version: Version) -> Era:
    """Which of the three kernel-half maps *version* has."""
    if has_moved_ldt(version):
        return "4.20"
    return "4.15" if version >= Version(4, 15) else "4.12"


def _with_split_ldt(areas: list[Area]) -> list[Area]:
    # 4.15 to 4.19.4, four levels only: the LDT remap takes the slot above the CPU entry
    # area. The five-level map of the same releases has it below vmalloc instead.
    return [a._replace(name="ldt_remap", kind="mapped") if a.name == "hole_below_espfix" else a for a in areas]


def _with_image_limit(areas: list[Area], limit: int) -> list[Area]:
    sized: list[Area] = []
    for area in areas:
        if area.name == "kernel_image":
            area = area._replace(end=area.start + limit)
        elif area.name == "modules":
            area = area._replace(start=sized[-1].end)
        sized.append(area)
    return sized


def linux_areas(version: str, levels: int, *, image_limit: int = 512 * MIB) -> tuple[Area, ...]:
    """The areas of Linux *version* with *levels* (4 or 5): all 64 bits, ascending, no gap.

    Bases are the ones without KASLR. *image_limit* is the room for the kernel image:
    512 MiB, or 1 GiB in kernels built with CONFIG_RANDOMIZE_BASE (distributions' are),
    where modules start that much higher. Releases after the newest tree read get
    its rows, and each row's source says so. Before 4.15 ``modules`` holds the fixmap
    too: their border moves with the build.

    Raises `LayoutError` for an unknown release, another number of levels or another limit.
    """
    _arguments.instance("version", version, str, expected="the release as text, such as '6.1'")
    _arguments.integer("levels", levels)
    parsed = parse_version(version)
    check_levels(levels)
    if image_limit not in (512 * MIB, 1024 * MIB):
        raise LayoutError(f"image limit is {image_limit:#x}; expected 512 MiB or 1 GiB")
    era = era_of(parsed)
    source = f"{_ERA_RELEASES[era]}: Documentation mm.rst, {levels}-level table"
    if parsed > NEWEST_READ:
        source += f" (read up to {NEWEST_READ}, assumed for {parsed})"
    user = _USER_7_1 if parsed >= Version(7, 1) else _USER
    areas = _rows(user[levels] + _LOW[era, levels] + _TOP[era], source)
    if (era, levels) == ("4.15", 4):
        areas = _with_split_ldt(areas)
    return tuple(_with_image_limit(areas, image_limit))
