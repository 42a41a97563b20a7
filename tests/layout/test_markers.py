"""Headings against the text that real kernels printed."""

from __future__ import annotations

import pytest

from fivefold.errors import LayoutError
from fivefold.layout import Bases, KernelBuild, ptdump_markers
from fivefold.units import MIB

# Headings of a five-level 6.1 guest with KASAN and the address at which each appeared or,
# where its area was empty, the start that its neighbours imply.
KASAN_LA57 = """
0000000000000000 User Space
8000000000000000 Kernel Space
ff10000000000000 LDT remap
ff11000000000000 Low Kernel Mapping
ffa0000000000000 vmalloc() Area
ffd4000000000000 Vmemmap
ffdffc0000000000 KASAN shadow
fffffc0000000000 KASAN shadow end
fffffe0000000000 CPU entry Area
ffffff0000000000 ESPfix Area
ffffffef00000000 EFI Runtime Services
ffffffff80000000 High Kernel Mapping
ffffffffc0000000 Modules
ffffffffff000000 End Modules
ffffffffff57c000 Fixmap Area
"""


def spelled(markers: tuple[tuple[str, int], ...]) -> list[str]:
    return [f"{start:016x} {text}" for text, start in markers]


def test_kasan_guest() -> None:
    got = spelled(ptdump_markers("6.1.192", 5, build=KernelBuild(kasan=True)))

    assert got == KASAN_LA57.strip().splitlines()


def test_randomised_guest() -> None:
    bases = Bases(0xFF45_3D0A_8000_0000, 0xFF6D_7D50_4000_0000, 0xFFB8_B3F6_8000_0000)  # type: ignore[arg-type]
    got = spelled(ptdump_markers("6.1", 5, bases))

    assert got[3:7] == [
        "ff453d0a80000000 Low Kernel Mapping",
        "ff6d7d5040000000 vmalloc() Area",
        "ffb8b3f680000000 Vmemmap",
        "fffffe0000000000 CPU entry Area",
    ]


@pytest.mark.parametrize(
    ("release", "levels", "before", "after"),
    [
        ("4.17", 4, "CPU entry Area", "ESPfix Area"),
        ("4.17", 5, "Low Kernel Mapping", "vmalloc() Area"),
        ("6.12", 4, "Kernel Space", "Low Kernel Mapping"),
    ],
)
def test_rs07_ldt_heading_is_in_order(release: str, levels: int, before: str, after: str) -> None:
    texts = [marker.text for marker in ptdump_markers(release, levels)]
    at = texts.index("LDT remap")

    assert (texts[at - 1], texts[at + 1]) == (before, after)


def test_the_proposals_kernels_had_fewer() -> None:
    texts = [marker.text for marker in ptdump_markers("4.14", 5, build=KernelBuild(image_limit=512 * MIB))]

    assert texts == [
        "User Space",
        "Kernel Space",
        "Low Kernel Mapping",
        "vmalloc() Area",
        "Vmemmap",
        "ESPfix Area",
        "EFI Runtime Services",
        "High Kernel Mapping",
        "Modules",
        "End Modules",
        "Fixmap Area",
    ]


def test_build_options_drop_headings() -> None:
    texts = {marker.text for marker in ptdump_markers("6.1", 4, build=KernelBuild(ldt=False, efi=False))}

    assert not {"LDT remap", "EFI Runtime Services"} & texts


def test_fixmap_out_of_place() -> None:
    with pytest.raises(LayoutError) as error:
        ptdump_markers("6.1", 4, build=KernelBuild(fixmap_start=0x1000))
    assert str(error.value) == "fixmap start 0x0000000000001000 is not between modules and vsyscall"
