"""AMD's nested page tables (NPT): ordinary entries, in which every guest access is a user's.

Source: AMD APM volume 2, "Nested Paging", "Guest Mode Execute Trap Extension".
"""

from __future__ import annotations

from dataclasses import replace

from fivefold.arch.access import Fault, Verdict, access
from fivefold.arch.accesses import Access, Kind
from fivefold.arch.cpu import Cpu
from fivefold.arch.modes import PagingMode
from fivefold.arch.state import ControlState
from fivefold.arch.walk import AddressSpace, TableReader
from fivefold.units import PhysAddr, VirtAddr


def nested_space(memory: TableReader, ncr3: int, mode: PagingMode, cpu: Cpu, nxe: bool = True) -> AddressSpace:
    """The nested tables at *ncr3*, in the host's paging mode *mode* and with the host's EFER.NXE."""
    return AddressSpace(memory, PhysAddr(ncr3 & cpu.frame_mask(4096)), mode, cpu, nxe)


def npt_access(
    space: AddressSpace, gpa: int, kind: Kind = Kind.READ, guest_supervisor_fetch: bool = False, gmet: bool = False
) -> Verdict:
    """Decide a guest's access to physical *gpa*: U/S=1 is needed at every level, R/W and NX as they are.

    With *gmet* (guest mode execute trap) a fetch by the guest's supervisor from a page whose nested U/S is 1 is
    refused, and one by its user from a page with U/S=0 is refused as ever. A guest's physical address is not
    sign-extended: its highest bit is an index like the others, and one that is wider than the tables is refused.
    """
    state = ControlState.long(space.mode, space.root, cpl=3)
    state = replace(state, efer=state.efer if space.nxe else state.efer & ~(1 << 11))
    if gmet and kind is Kind.FETCH and guest_supervisor_fetch:
        # The manual describes it as SMEP of the nested tables, with the guest's privilege.
        state = replace(state, cpl=0, cr4=state.cr4 | 1 << 20)
    indexed = space.mode.sign_extend(gpa) if gpa >> space.mode.va_bits == 0 else VirtAddr(space.mode.gap.start)
    found = access(space, state, indexed, Access(kind))
    return replace(found, va=VirtAddr(gpa)) if isinstance(found, Fault) else found
