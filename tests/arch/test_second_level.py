"""EPT, NPT, VT-d and nested walks: vectors by hand, from the manuals' tables of entry formats."""

from __future__ import annotations

import pytest

from fivefold.arch import (
    LA48,
    LA57,
    AddressSpace,
    Allowed,
    Cpu,
    Entry,
    Fault,
    Frames,
    Kind,
    Level,
    Mapped,
    PagingMode,
    map_page,
)
from fivefold.arch.second_level.ept import EXECUTE, READ, USER_EXECUTE, WRITE, EptCause, Eptp, ept_walk
from fivefold.arch.second_level.nested import SecondLevelFault, nested_translate, reads_of
from fivefold.arch.second_level.npt import nested_space, npt_access
from fivefold.arch.second_level.vtd import vtd_walk
from fivefold.arch.stale.allowed import WordMemory
from fivefold.memory import Ram
from fivefold.units import PhysAddr, VirtAddr

CPU = Cpu(phys_bits=46)
GPA = 0x1234_5678


def ept(leaf: int, levels: int = 4, page: Level = Level.PT, above: int = 7) -> tuple[WordMemory, Eptp]:
    words, table = {}, 0x1000
    for number in range(levels, int(page) - 1, -1):
        level = Level(number)
        words[table + 8 * level.index(GPA)] = leaf if level is page else table + 0x1000 | above
        table += 0x1000
    return WordMemory(words), Eptp(0x1000 | (levels - 1) << 3 | 6)


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize(
    ("leaf", "page", "access", "above", "want"),
    [
        (0x9037, Level.PT, READ, 7, "mapped 0x9678"),
        (0x9037, Level.PT, WRITE, 7, "mapped 0x9678"),
        (0x9034, Level.PT, EXECUTE, 7, "mapped 0x9678"),
        (0x9034, Level.PT, READ, 7, "EPT violation 0x21"),
        (0x9031, Level.PT, WRITE, 7, "EPT violation 0xa"),
        (0x9037, Level.PT, WRITE, 5, "EPT violation 0x2a"),
        (0x9030, Level.PT, READ, 7, "EPT violation 0x1"),
        (0x9032, Level.PT, READ, 7, "EPT misconfiguration"),
        (0x9036, Level.PT, EXECUTE, 7, "EPT misconfiguration"),
        (0x9017, Level.PT, READ, 7, "EPT misconfiguration"),
        (0x903F, Level.PT, READ, 7, "EPT misconfiguration"),
        (1 << 46 | 0x9037, Level.PT, READ, 7, "EPT misconfiguration"),
        (0x60_00B7, Level.PD, READ, 7, "mapped 0x745678"),
        (0x60_10B7, Level.PD, READ, 7, "EPT misconfiguration"),
        (0x4000_00B7, Level.PDPT, READ, 7, "mapped 0x52345678"),
        (0x9037, Level.PT, READ, 0xF, "EPT misconfiguration"),
    ],
)
def test_ept(levels: int, leaf: int, page: Level, access: int, above: int, want: str) -> None:
    found = ept_walk(*ept(leaf, levels, page, above), GPA, access, CPU)
    shown = {
        EptCause.MAPPED: lambda: f"mapped {found.hpa:#x}",
        EptCause.VIOLATION: lambda: f"EPT violation {found.qualification:#x}",
        EptCause.MISCONFIGURATION: lambda: "EPT misconfiguration",
    }
    assert shown[found.cause]() == want


def test_execute_only_and_mode_based_execution() -> None:
    assert ept_walk(*ept(0x9034), GPA, EXECUTE, CPU, execute_only=False).cause is EptCause.MISCONFIGURATION
    user = ept(0x9031 | USER_EXECUTE, above=7 | USER_EXECUTE)
    assert ept_walk(*user, GPA, USER_EXECUTE, CPU, mode_based=True).cause is EptCause.MAPPED
    assert ept_walk(*user, GPA, EXECUTE, CPU, mode_based=True).cause is EptCause.VIOLATION
    assert ept_walk(*user, GPA, USER_EXECUTE, CPU).cause is EptCause.VIOLATION


@pytest.mark.parametrize(
    "raw", [0x1000 | 2 << 3 | 6, 0x1000 | 3 << 3 | 1, 1 << 46 | 0x1000 | 3 << 3 | 6, 0x1980 | 3 << 3]
)
def test_a_pointer_that_vm_entry_refuses(raw: int) -> None:
    with pytest.raises(ValueError, match="EPTP"):
        ept_walk(WordMemory({}), Eptp(raw), GPA, READ, CPU)


@pytest.mark.parametrize("mode", [LA48, LA57])
def test_npt_wants_user_pages(mode: object) -> None:
    assert mode in (LA48, LA57)
    paging = LA48 if mode is LA48 else LA57
    ram = Ram.of_size(0x20000, start=0x1000)
    space = nested_space(ram, 0x1000, paging, CPU)
    frames = Frames(ram, PhysAddr(0x2000), 12)
    for gpa, leaf in ((0x10_0000, 0x9067), (0x10_1000, 0xA063), (0x10_2000, 1 << 63 | 0xB065)):
        map_page(ram, space, VirtAddr(gpa), Entry(leaf, Level.PT), frames)
    assert isinstance(npt_access(space, 0x10_0000, Kind.WRITE), Allowed)
    supervisor = npt_access(space, 0x10_1000)
    assert isinstance(supervisor, Fault) and supervisor.error_code == 5
    assert isinstance(npt_access(space, 0x10_2000, Kind.WRITE), Fault)
    assert isinstance(npt_access(space, 0x10_2000, Kind.FETCH), Fault)
    assert isinstance(npt_access(space, 0x10_0000, Kind.FETCH, True, gmet=True), Fault)
    assert isinstance(npt_access(space, 0x10_1000, Kind.FETCH, True, gmet=True), Allowed)


def test_a_guests_walk_goes_through_the_second_level() -> None:
    """Guest frames lie 1 MiB higher in the host; guest frame 0x5000, a table, has no translation."""
    host = Ram.of_size(0x10_0000, start=0x10_0000)
    for gpa, raw in ((0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x4007), (0x4000, 0x9067), (0x3008, 0x5007)):
        host.write(PhysAddr(0x10_0000 + gpa), raw.to_bytes(8, "little"))
    seen = []

    def second(gpa: int, final: bool) -> PhysAddr:
        seen.append((gpa & ~0xFFF, final))
        if gpa >> 12 == 5:
            raise SecondLevelFault(gpa, "not present", final)
        return PhysAddr(gpa + 0x10_0000)

    space = AddressSpace(host, PhysAddr(0x1000), LA48, CPU)
    found, hpa = nested_translate(space, second, VirtAddr(0x123))
    assert isinstance(found, Mapped)
    assert (found.pa, hpa) == (0x9123, 0x10_9123)
    assert seen == [(0x1000, False), (0x2000, False), (0x3000, False), (0x4000, False), (0x9000, True)]
    with pytest.raises(SecondLevelFault, match="0x5000"):
        nested_translate(space, second, VirtAddr(0x20_0000))
    assert reads_of(5, 4) == 29


def test_vtd() -> None:
    memory, eptp = ept(0x9003, above=3)
    assert vtd_walk(memory, eptp.root, 4, GPA, 3, CPU).hpa == 0x9678
    memory, eptp = ept(0x9001, above=3)
    assert vtd_walk(memory, eptp.root, 4, GPA, 2, CPU).reason == "rights do not allow it"
    memory, eptp = ept(0x60_2083, page=Level.PD, above=3)
    assert "reserved" in vtd_walk(memory, eptp.root, 4, GPA, 1, CPU).reason
    assert "beyond 48 bits" in vtd_walk(memory, eptp.root, 4, 1 << 48, 1, CPU).reason
    with pytest.raises(ValueError, match="3 to 5"):
        vtd_walk(memory, eptp.root, 2, GPA)


@pytest.mark.parametrize("mode", [LA48, LA57])
def test_a_guests_physical_address_is_not_sign_extended(mode: PagingMode) -> None:
    ram = Ram.of_size(0x1_0000, start=0x1000)
    space = nested_space(ram, 0x1000, mode, CPU)
    gpa = 1 << (mode.va_bits - 1) | 0x5000
    entry = Entry(0x9007, Level.PT)
    map_page(ram, space, mode.sign_extend(gpa), entry, Frames(ram, 0x2000, 8))
    found = npt_access(space, gpa | 0x123)
    assert isinstance(found, Allowed)
    assert found.pa == 0x9123
    for wide in (1 << mode.va_bits | gpa, int(mode.sign_extend(gpa)), gpa + 0x1000):
        refused = npt_access(space, wide)
        assert isinstance(refused, Fault)
        assert refused.va == wide
