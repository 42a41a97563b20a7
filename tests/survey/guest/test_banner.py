"""The banner of a kernel: found wherever it lies in the image, and what its lack says."""

from __future__ import annotations

from typing import Any

import pytest

from fivefold.arch import LA48
from fivefold.memory import Bank, BankedMemory, Ram
from fivefold.survey.guest import banner
from fivefold.survey.guest.banner import ImageBanner, image_banner
from fivefold.units import GIB, MIB

IMAGE, AT = 0xFFFF_FFFF_8100_0000, 4 * MIB
TEXT = b"Linux version 6.1.0-13-amd64 (debian-kernel@lists.debian.org) (gcc-12)"
P, W, G, NX = 1, 2, 0x100, 1 << 63


def built_of(build: Any, memory: int = 12 * MIB) -> Any:
    """Code, and data behind it; a page below the code and one in the middle that is another's."""
    built = build(LA48, Ram.of_size(memory - 0x1000, start=0x1000))
    built.page(IMAGE - 0x1000, 0x20_0000 | P | W | NX)
    return built.pages(IMAGE, 2 * MIB, AT | P | G).pages(IMAGE + 2 * MIB, 2 * MIB, AT + 3 * MIB | P | W | G | NX)


def found_in(built: Any) -> ImageBanner:
    with built.space() as space:
        return image_banner(space.overview, space.source.memory)


@pytest.mark.parametrize(
    "offset",
    [
        *(0, 1, MIB - 1, MIB - 30, MIB - len(TEXT), MIB - len(TEXT) + 1, MIB),
        *(2 * MIB - len(TEXT), 2 * MIB, 3 * MIB - 40, 4 * MIB - len(TEXT)),
    ],
)
def test_wherever_it_lies(build: Any, offset: int) -> None:
    """Across the borders of pieces that are read, too; its address is that of its first byte."""
    built = built_of(build)
    at = AT + offset + (MIB if offset >= 2 * MIB else 0)
    built.ram.write(at, TEXT)
    assert found_in(built) == ImageBanner("6.1.0-13-amd64", at, is_whole=True)


@pytest.mark.parametrize("at", [0x20_0000, AT + 2 * MIB, AT + 5 * MIB])
def test_what_lies_outside_of_the_image(build: Any, at: int) -> None:
    """In front of the code, between its two parts in memory, and behind it; the image is read whole all the same."""
    built = built_of(build)
    built.ram.write(AT + 0x10, b"code")
    built.ram.write(at, TEXT)
    assert found_in(built) == ImageBanner(None, 0, is_whole=True)


def test_an_image_that_is_not_there(build: Any) -> None:
    """Nothing but zeros, parts without memory, and no image at all: the lack of a banner says nothing then."""
    assert found_in(built_of(build)) == ImageBanner(None, 0, is_whole=False)
    assert found_in(build(LA48).page(IMAGE - 0x1000, 0x20_0000 | P | W | NX)) == ImageBanner(None, 0, is_whole=False)
    cut = built_of(build, AT + 5 * MIB)
    cut.ram.write(AT + 0x10, b"code")
    with cut.space() as space:
        data = bytes(cut.ram.read(0x1000, AT + 4 * MIB - 0x1000))
        banks = [Bank(0x1000, memoryview(data))]
        assert image_banner(space.overview, BankedMemory(banks, "cut")) == ImageBanner(None, 0, is_whole=False)
        part = data[: AT - 0x1000] + TEXT + data[AT - 0x1000 + len(TEXT) :]
        with_banner = image_banner(space.overview, BankedMemory([Bank(0x1000, memoryview(part))], "cut"))
        assert with_banner == ImageBanner("6.1.0-13-amd64", AT, is_whole=True)


@pytest.mark.parametrize("va", [IMAGE - GIB, IMAGE + GIB], ids=["below the window", "above it"])
def test_code_outside_of_the_window_is_not_the_image(build: Any, va: int) -> None:
    """That of a hypervisor, or of a module that says so of itself."""
    built = built_of(build)
    built.page(va, 0x20_0000 | P | G)
    built.ram.write(0x20_0000, TEXT)
    built.ram.write(AT, b"code")
    assert found_in(built).release is None


def test_so_much_is_read(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies behind that was not looked at."""
    built = built_of(build)
    built.ram.write(AT + 0x10, b"code")
    for offset, most, is_found in ((MIB, 2 * MIB, True), (2 * MIB, 2 * MIB, False), (2 * MIB, 2 * MIB + 1, True)):
        monkeypatch.setattr(banner, "MOST_OF_IMAGE", most)
        at = AT + offset + (MIB if offset >= 2 * MIB else 0)
        built.ram.write(at, TEXT)
        assert found_in(built) == ImageBanner(*(("6.1.0-13-amd64", at) if is_found else (None, 0)), is_whole=is_found)
        built.ram.write(at, bytes(len(TEXT)))


@pytest.mark.parametrize(
    ("text", "release"),
    [
        (b"Linux version 4.20 (", "4.20"),
        (b"Linux version 6 (", None),
        (b"Linux version %s (%s)", None),
        (b"Linux version 5.10.0" + b"x" * 58 + b" (", "5.10.0" + "x" * 58),
        (b"Linux version 5.10.0" + b"x" * 59 + b" (", None),
        (b"Linux version 5.10\x1b[1m (", None),
    ],
)
def test_what_is_a_banner(build: Any, text: bytes, release: str | None) -> None:
    built = built_of(build)
    built.ram.write(AT + 0x800, text)
    assert found_in(built).release == release
