"""The serial port and the exit port."""

from __future__ import annotations

from fivefold.machine.ports import Ports


def test_serial_port_sends_what_is_not_a_divisor():
    ports = Ports()
    ports.write(0x3FB, 0x80)
    ports.write(0x3F8, 0x03)
    ports.write(0x3FB, 0x03)
    ports.write(0x3F8, 0x41)

    assert ports.output == b"A"
    assert (ports.read(0x3FD, 1), ports.read(0x3FA, 1), ports.read(0x3FB, 1)) == (0x60, 0x01, 0x03)


def test_exit_port_keeps_the_first_byte():
    ports = Ports()
    assert ports.exit_code is None
    ports.write(0xF4, 0x1FE)
    ports.write(0xF4, 7)

    assert ports.exit_code == 0xFE


def test_other_ports_read_as_ones():
    ports = Ports()
    ports.write(0x70, 1)

    assert [ports.read(0x71, size) for size in (1, 2, 4)] == [0xFF, 0xFFFF, 0xFFFFFFFF]
    assert ports.output == b""
