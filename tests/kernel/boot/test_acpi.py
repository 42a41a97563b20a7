"""Switching the machine off: the way from the root pointer to S5, in tables that are right, cut short, or nonsense."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fivefold.arch import LA57

INFO, RSDP, ROOT, FADT, DSDT = 0x1000, 0xE_0010, 0x2000, 0x3000, 0x4000
EXTENTS = [(0x0, 0x10_0000)]
S5 = b"\x08_S5_\x12\x06\x04\x00\x05\x00\x00"
"""Name (\\_S5, Package (4) {0, 5, 0, 0}) as a compiler writes it, but for the 5."""


def header(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", 36 + len(body)) + bytes(28) + body


def rsdp(wide: bool) -> bytes:
    body = b"RSD PTR \0FIVEFO" + bytes([2 if wide else 0]) + struct.pack("<I", 0 if wide else ROOT)
    total = -sum(body) & 0xFF
    return body[:8] + bytes([total]) + body[9:] + struct.pack("<IQ", 36, ROOT if wide else 0)


def tables(
    wide: bool = False, aml: bytes = b"\x10\x02\x5c\x00" + S5, named: bytes = b"FACP", reduced: bytes = b""
) -> dict[int, bytes]:
    fadt = bytearray(116)
    if reduced:
        struct.pack_into("<I", fadt, 112, 1 << 20)
        fadt += bytes(244 - 116) + reduced
    struct.pack_into("<I", fadt, 40, DSDT)
    struct.pack_into("<IB", fadt, 48, 0xB2, 0xF1)
    struct.pack_into("<II", fadt, 64, 0x604, 0x704)
    root = struct.pack("<Q", FADT) if wide else struct.pack("<I", FADT)
    return {
        RSDP: rsdp(wide),
        ROOT: header(b"XSDT" if wide else b"RSDT", root),
        FADT: header(named, bytes(fadt[36:])),
        DSDT: header(b"DSDT", aml),
    }


class Ports:
    """PM1 control registers that note what is written, in legacy mode until they are told otherwise."""

    def __init__(self) -> None:
        self.written: list[tuple[int, int]] = []
        self.on = 0

    def inw(self, port: int) -> int:
        return self.on

    def outw(self, port: int, value: int) -> None:
        self.written.append((port, value))

    def outb(self, port: int, value: int) -> None:
        self.written.append((port, value))
        self.on = 1


def world(code: Any, at: dict[int, bytes], given_at: int = 0, package: str = "fivefold.kernel") -> tuple[Any, Ports]:
    machine = code(LA57, "acpi", "start_info.field64", package=package, extents=EXTENTS)
    machine.ram.write(0, bytes(0x10_0000))
    for address, data in {INFO + 32: struct.pack("<Q", given_at), **at}.items():
        machine.ram.write(address, data)
    ports = Ports()
    for name in ("inw", "outw", "outb"):
        setattr(machine.processor, name, getattr(ports, name))
    machine.call("acpi.find_power_off", INFO)
    return machine, ports


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("told", [False, True])
def test_the_way_to_s5(code: Any, guards: Callable[..., None], wide: bool, told: bool) -> None:
    def check(package: str) -> None:
        place = 0x8008 if told else RSDP
        at = tables(wide)
        at[place] = at.pop(RSDP)
        machine, ports = world(code, at, place if told else 0, package)
        assert [machine.get(f"acpi.{name}") for name in ("pm1a", "pm1b", "type_a", "type_b")] == [0x604, 0x704, 0, 5]
        machine.call("acpi.power_off", 0)
        asked = [(0x604, 0x2000), (0x704, 0x3400)]
        again = [(port, value | 1) for port, value in asked]  # a bit that is on stays on
        assert ports.written == [*asked, (0xB2, 0xF1), *again]

    check("fivefold.kernel")
    if not wide and not told:
        guards(check, "acpi.py", ("first + size_of(first)", "first + 1 + size_of(first)"))
        guards(check, "acpi.py", ("type_b << SLEEP_TYPE", "type_a << SLEEP_TYPE"))


@pytest.mark.parametrize("place", [0x604, 0xFFFF, 0x10000])
def test_reduced_hardware_has_one_register_at_a_port(code: Any, guards: Callable[..., None], place: int) -> None:
    def check(package: str) -> None:
        register = struct.pack("<BBBBQ", 1, 8, 0, 1, place)
        machine, ports = world(code, tables(reduced=register, aml=S5.replace(b"\0\x05", b"\x0a\x05")), package=package)
        machine.call("acpi.power_off", 0)
        assert ports.written == ([] if place > 0xFFFF else [(place, 5 << 2 | 1 << 5)])

    check("fivefold.kernel")
    if place == 0x604:
        guards(check, "acpi.py", ("type_a << REDUCED_TYPE", "type_b << REDUCED_TYPE"))


@pytest.mark.parametrize(
    "at",
    [
        {},
        {**tables(), RSDP: rsdp(False).replace(b"FIVEFO", b"FIVEFI")},
        tables(named=b"APIC"),
        tables(aml=b"_S5_" + S5[5:]),
        tables(aml=S5[:7]),
        {**tables(), DSDT: bytes(64)},
        tables(reduced=struct.pack("<BBBBQ", 0, 8, 0, 1, 1 << 52)),
        tables(reduced=struct.pack("<BBBBQ", 2, 8, 0, 1, 0x604)),
        tables(reduced=bytes(4)),
    ],
    ids=[
        "nothing",
        "sum",
        "no FADT",
        "not a name",
        "cut short",
        "no DSDT",
        "beyond the CPU's addresses",
        "in the space of PCI",
        "without its register",
    ],
)
def test_no_way_is_none(code: Any, at: dict[int, bytes]) -> None:
    machine, ports = world(code, at)
    machine.call("acpi.power_off", 0)
    assert (machine.get("acpi.pm1a"), ports.written) == (0, [])


def test_the_package_may_end_the_table(code: Any) -> None:
    """Bochs' does: with fewer bytes behind it than the largest package has."""
    machine, _ = world(code, tables(aml=b"\0\0" + S5))
    assert machine.get("acpi.pm1a") == 0x604


@settings(max_examples=40)
@given(st.sampled_from([ROOT, FADT, DSDT]), st.integers(4, 40), st.integers(0, 255))
def test_damaged_tables_cost_a_look(code: Any, table: int, at: int, value: int) -> None:
    """Lengths of any size; addresses beyond memory are another matter: the early handler maps them."""
    damaged = {address: bytearray(data) for address, data in tables().items()}
    if at < 8 or table == DSDT:
        damaged[table][min(at, len(damaged[table]) - 1)] = value
    world(code, {address: bytes(data) for address, data in damaged.items()})
