"""What lies at an address, in words: its area, the KASAN shadow it is, what the registers have there."""

from __future__ import annotations

from typing import Final, NamedTuple

from fivefold.arch import LA48, LA57, PagingMode
from fivefold.errors import LayoutError
from fivefold.explain.area_names import DEFAULT_RELEASE, KERNEL_IMAGE, AreaNames, NamedArea
from fivefold.explain.rules.ruling import physical
from fivefold.explain.rules.situation import Situation
from fivefold.layout import Area, area_of, from_shadow, shadow_offset
from fivefold.layout.kasan import COMMON_OFFSET
from fivefold.machine.base import vector_name
from fivefold.units import GIB, MASK64, hex64

NULL_PAGE: Final = 0x1000

_WORDS: Final = {
    "user": "the user half",
    "non_canonical": "no address at all: not canonical",
    "guard_hole": "the guard hole that is kept for hypervisors",
    "direct_map": "the direct map of physical memory",
    "vmalloc": "the vmalloc area",
    "vmemmap": "the page descriptors (vmemmap)",
    "kasan_shadow": "the KASAN shadow",
    "cpu_entry_area": "the CPU entry area",
    "espfix": "the ESPfix stacks",
    "efi_runtime": "the EFI runtime services",
    "kernel_image": "the kernel image",
    "modules": "the modules",
    "fixmap": "the fixmap",
    "vsyscall": "the vsyscall page",
    "ldt_remap": "the LDT remap",
    "hypervisor": "the hypervisor",
}


class AddressArea(NamedTuple):
    """An address: *area* by its name in the map, None where the modes differ, and *sentence* about it."""

    address: int
    area: str | None
    sentence: str


def describe(here: Situation, va: int, names: AreaNames | None = None) -> AddressArea:
    """Say what lies at *va* for the CPU *here*; *names* knows where areas lie."""
    names = names or AreaNames()
    if here.may_be_long:
        text = f"{hex64(va)}: whether the CPU is in long mode is not known, and with it what lies there"
        return AddressArea(va, None, text)
    if here.known_mode and here.mode is None:
        return AddressArea(va, None, f"{hex64(va)}: the CPU is outside of long mode, where areas have no names here")
    found = {mode: names.at(va, mode) for mode in ((here.mode,) if here.mode else (LA57, LA48))}
    parts = dict.fromkeys(_of_area(here, one, va, mode, names) for mode, one in found.items())
    text = next(iter(parts))
    if len(parts) > 1:
        half = "upper" if va >> 63 else "lower"
        text = f"in the {half} half; its area depends on the number of levels, which is not known"
    if more := _relations(here, va):
        text += "; " + "; ".join(more)
    areas = {one.name for one in found.values()}
    return AddressArea(va, areas.pop() if len(areas) == 1 else None, f"{hex64(va)} is {text}")


def _of_area(here: Situation, found: NamedArea, va: int, mode: PagingMode, names: AreaNames) -> str:
    name = found.name
    if name is None:
        return _unnamed(found, va)
    if name == "user" and va < NULL_PAGE:
        return "in the first page, which is never mapped"
    words = _WORDS.get(name)
    if name == "kasan_shadow":
        return f"in {words}, {_shadowed(va, mode, names)}"
    if name.startswith("non_canonical"):
        return f"{_WORDS['non_canonical']}{_other_modes(here, va)}{_user_shadow(va, names)}"
    if words is None:
        return f"in a hole{_neighbour(found.area, mode, names)}, which Linux leaves unmapped"
    return f"in {words}"


def _unnamed(found: NamedArea, va: int) -> str:
    """An address in an area that the source does not name."""
    half = "in the upper half" if va >> 63 else "in the lower half"
    if found.would_be is not None:
        words = _WORDS.get(found.would_be, found.would_be)
        return f"{half}; it would be in {words} of Linux if bases are not randomised, which the source does not say"
    return half if found.either is None else f"{half}, {found.either}"


def _shadowed(va: int, mode: PagingMode, names: AreaNames) -> str:
    """Which address a shadow byte stands for."""
    try:
        offset = shadow_offset(names.release or DEFAULT_RELEASE, len(mode.levels))
    except LayoutError:
        offset = shadow_offset(DEFAULT_RELEASE, len(mode.levels))
    first = from_shadow(va, offset)
    target = names.at(first, mode).name
    where = "" if target is None else f" in {_WORDS.get(target, 'a hole')}"
    return f"the shadow of {hex64(first)}{where}"


def _user_shadow(va: int, names: AreaNames) -> str:
    """Where KASAN of Linux would look for the shadow of a user address: what an instrumented wild pointer touches."""
    first = from_shadow(va)
    if va < COMMON_OFFSET or first >= LA48.gap.start or not names.may_be_linux:
        return ""
    what = "a NULL pointer" if first < 0x1000 else "a user address"
    return f"; it is where KASAN's shadow of {hex64(first)} would be, so perhaps an instrumented access to {what}"


def _other_modes(here: Situation, va: int) -> str:
    mode = here.mode
    if mode is None:
        return ""
    other = LA48 if mode is LA57 else LA57
    if other.is_canonical(va):
        return f" in {mode.va_bits} bits, though canonical in {other.va_bits}"
    return f" in {mode.va_bits} bits"


def _neighbour(area: Area | None, mode: PagingMode, names: AreaNames) -> str:
    above = area_of(names.documents(mode), area.end) if area and area.end <= MASK64 else None
    return f" below {_WORDS[above.name]}" if above is not None and above.name in _WORDS else ""


def _relations(here: Situation, va: int) -> list[str]:
    """What the registers say about the neighbourhood of *va*."""
    registers = here.registers
    found = []
    rsp, idt, gdt, tr = registers.rsp, registers.idt, registers.gdt, registers.segments.get("tr")
    if rsp is not None and 0 < rsp - va <= 64:
        found.append(f"{rsp - va} bytes below RSP")
    elif rsp is not None and rsp == va:
        found.append("where RSP points")
    if idt is not None and idt.limit and 0 <= va - idt.base <= idt.limit:
        gate = "" if here.may_be_long else f", the gate of {vector_name((va - idt.base) // here.gate_size)}"
        found.append(f"in the IDT{gate}")
    if gdt is not None and gdt.limit and 0 <= va - gdt.base <= gdt.limit:
        found.append(f"in the GDT, entry {va - gdt.base >> 3}")
    if tr is not None and tr.base and 0 <= va - tr.base <= min(tr.limit, 0x67):
        found.append("in the TSS")
    return found


def notable_registers(here: Situation) -> tuple[str, ...]:
    """Registers whose value is a known constant, or the edge of an area."""
    found = []
    offsets = {
        shadow_offset(DEFAULT_RELEASE, 5): "both modes since 4.15",
        shadow_offset("4.14", 5): "five levels to 4.14",
    }
    for name, value in here.registers.general.items():
        if value in offsets:
            found.append(f"{name.upper()} = {hex64(value)} is the KASAN shadow offset ({offsets[value]})")
    rsp = here.registers.rsp
    if rsp == KERNEL_IMAGE:
        found.append(
            f"RSP = {hex64(rsp)} is exactly the start of the kernel image mapping: the next push goes below it, "
            "where nothing is mapped"
        )
    return tuple(found)


def phys_base_hint(here: Situation, va: int) -> str | None:
    """A kernel-image address that is off by `phys_base`, as the mapping of the image shows.

    The kernel maps its image at 0xffffffff80000000 + physical - phys_base. Early code that adds the
    constant and forgets phys_base gets an address that is right only where phys_base is 0.
    """
    rip, space = here.registers.rip, here.space
    if space is None or rip is None or not KERNEL_IMAGE <= rip < KERNEL_IMAGE + GIB <= MASK64:
        return None
    if not KERNEL_IMAGE <= va < KERNEL_IMAGE + GIB:
        return None
    rip_pa = physical(here, rip)
    if rip_pa is None:
        return None
    phys_base = rip_pa - (rip - KERNEL_IMAGE)
    meant = va - phys_base
    if phys_base <= 0 or physical(here, meant) != va - KERNEL_IMAGE:
        return None
    return (
        f"the kernel image lies at physical addresses {phys_base:#x} (phys_base) higher than linked; "
        f"{hex64(va)} is 0xffffffff80000000 + {va - KERNEL_IMAGE:#x} without taking phys_base off, and that "
        f"physical address is mapped at {hex64(meant)}"
    )
