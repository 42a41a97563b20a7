"""A second module of the test program: what `metal_constructs` reads and calls across modules."""

from __future__ import annotations

from typing import Final

from fivefold.metal.lang import inline, u64

shared: u64 = 5
switch: bool = False
LIMIT: Final = 0x1234
bound_shift: u64 = 12


@inline
def across(value: u64) -> u64:
    return value ^ shared


def original(value: u64) -> u64:
    return value + 1


def stand_in(value: u64) -> u64:
    return value + 1000
