"""The headings of the kernel's dump for a guest: found, given or guessed, and which of them it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fivefold.errors import LayoutError
from fivefold.layout import Bases, KernelBuild, Marker, default_bases, ptdump_markers
from fivefold.survey.guest.areas import ASSUMED_RELEASE
from fivefold.survey.space import Space
from fivefold.units import VirtAddr, format_size, hex64, parse_address, parse_size

_YES_NO: Final = {"yes": True, "no": False}
_KEYS: Final = "kasan=yes|no, ldt=yes|no, efi=yes|no, fixmap_start=ADDRESS, image_limit=512M|1G, release=6.1"


def parse_build(text: str) -> dict[str, str]:
    """Split ``key=value,key=value``; `ValueError` for a key that is not one of a kernel's build."""
    given = dict(part.strip().partition("=")[::2] for part in text.split(",") if part.strip())
    unknown = set(given) - {"kasan", "ldt", "efi", "fixmap_start", "image_limit", "release"}
    if unknown or not all(given.values()):
        raise ValueError(f"{text!r} is not a build of a kernel; expected {_KEYS}")
    return given


def headings(space: Space, given: dict[str, str]) -> tuple[Sequence[Marker], str]:
    """The headings for *space* and, in a sentence, what of them was guessed.

    *given* is from `parse_build`; what it leaves out is found in the tables or a default. `ValueError`
    for values that make no sense, `LayoutError` for headings that no kernel has.
    """
    release = given.get("release") or space.release.value or ASSUMED_RELEASE
    build = _build(space, given)
    bases, how = _bases(space, release)
    try:
        markers = ptdump_markers(release, space.levels, bases, build)
    except LayoutError as error:
        markers, how = ptdump_markers(release, space.levels, None, build), f"default bases, since {error}"
    return markers, _sentence(release, build, given, space, how)


def _build(space: Space, given: dict[str, str]) -> KernelBuild:
    default = KernelBuild()
    return KernelBuild(
        kasan=_flag(given, "kasan", space.bases.kasan),
        ldt=_flag(given, "ldt", default.ldt),
        efi=_flag(given, "efi", default.efi),
        fixmap_start=parse_address(given["fixmap_start"]) if "fixmap_start" in given else default.fixmap_start,
        image_limit=parse_size(given["image_limit"]) if "image_limit" in given else default.image_limit,
    )


def _flag(given: dict[str, str], key: str, default: bool) -> bool:
    if key not in given:
        return default
    if given[key] not in _YES_NO:
        raise ValueError(f"{key}={given[key]}; expected yes or no")
    return _YES_NO[given[key]]


def _bases(space: Space, release: str) -> tuple[Bases | None, str]:
    """The bases found, defaults for what was not, and what that was."""
    names = ("page_offset", "vmalloc", "vmemmap")
    found = (space.bases.page_offset.value, space.bases.vmalloc.value, space.bases.vmemmap.value)
    default = default_bases(release, space.levels)
    missing = [name for name, value in zip(names, found, strict=True) if value is None]
    chosen = [VirtAddr(own if own is not None else base) for own, base in zip(found, default, strict=True)]
    return Bases(*chosen), f"default base of {', '.join(missing)}" if missing else ""


def _sentence(release: str, build: KernelBuild, given: dict[str, str], space: Space, how: str) -> str:
    guesses = []
    if "release" not in given and space.release.value is None:
        guesses.append(f"release {release}")
    values = {
        "ldt": "yes" if build.ldt else "no",
        "efi": "yes" if build.efi else "no",
        "fixmap_start": hex64(build.fixmap_start),
        "image_limit": format_size(build.image_limit),
    }
    guesses += [f"{key}={value}" for key, value in values.items() if key not in given]
    text = f"headings depend on the kernel's build; guessed: {', '.join(guesses)}" if guesses else ""
    return "; ".join(part for part in (text, how) if part)
