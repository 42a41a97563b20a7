"""Words of the command line, for code that has strings (`detect.py` has the one word that is needed before)."""

from __future__ import annotations

from typing import Final

from fivefold.kernel.detect import MAX_CMDLINE, separates
from fivefold.metal.lang import byte_at, load8, noinline, u64
from fivefold.units import VirtAddr

ABSENT: Final = 0


@noinline
def find_option(cmdline: VirtAddr, name: str) -> u64:
    """Address of what follows *name* at the start of a word, or `ABSENT`; 0 stands for no command line."""
    if cmdline == 0:
        return ABSENT
    at = u64(cmdline)
    while at < cmdline + MAX_CMDLINE:
        while separates(load8(at)):
            if load8(at) == 0:
                return ABSENT
            at += 1
        matched = 0
        while byte_at(name, matched) != 0 and load8(at + matched) == byte_at(name, matched):
            matched += 1
        if byte_at(name, matched) == 0:
            return at + matched
        while not separates(load8(at)):
            at += 1
    return ABSENT


def has_word(cmdline: VirtAddr, name: str) -> bool:
    """Whether *name* is a whole word of the command line."""
    rest = find_option(cmdline, name)
    return rest != ABSENT and separates(load8(rest))


@noinline
def has_value(cmdline: VirtAddr, name: str, value: str) -> bool:
    """Whether a word is *name* (which ends in ``=``) followed by exactly *value*."""
    rest = find_option(cmdline, name)
    if rest == ABSENT:
        return False
    i = 0
    while byte_at(value, i) != 0:
        if load8(rest + i) != byte_at(value, i):
            return False
        i += 1
    return separates(load8(rest + i))
