"""The firmware's runtime services: its space is built, and it is moved there [proposal: parts 3 and 7].

First the firmware is mapped at its physical addresses too (an identity map) and gets its new addresses; then what it
needs no more is taken away: the identity map, and the rights that its table of memory attributes gives up.
"""

from __future__ import annotations

from fivefold.kernel import report
from fivefold.kernel.efi import efi_attributes, efi_calls, efi_map, efi_space
from fivefold.kernel.paging import memblock
from fivefold.kernel.report import equals
from fivefold.metal.lang import noinline
from fivefold.units import PhysAddr, VirtAddr


@noinline
def start_runtime(top: VirtAddr, info: PhysAddr) -> bool:
    """Build the firmware's address space and move the firmware into it; False if no firmware started us."""
    if not efi_map.find_handoff(info):
        return False
    report.check("efi_handoff", True, efi_map.handoff, 0)
    efi_map.check_map()
    before = memblock.table_pages
    if not efi_space.create(top):
        report.panic("no memory for the firmware's address space")
    regions = efi_space.map_regions()
    report.check("efi_runtime_regions", regions != 0, regions, 0)
    equals("efi_set_virtual_address_map", efi_calls.move_firmware(top), 0)
    equals("efi_identity_gone", efi_space.drop_identity(), 0)
    efi_attributes.divide(efi_space.top_page())
    report.set_word(report.W_EFI_ROOT, efi_space.root)
    report.set_word(report.W_EFI_TABLES, memblock.table_pages - before)
    return True
