"""Words of the command line, for code that has strings (`detect.py` has the one word that is needed before)."""

from __future__ import annotations

from typing import Final

from fivefold.kernel import report
from fivefold.kernel.boot.detect import separates
from fivefold.kernel.boot.start_info import MAX_CMDLINE
from fivefold.metal.lang import byte_at, load8, noinline, u64
from fivefold.units import VirtAddr

ABSENT: Final = 0
MOST: Final = (1 << 64) - 1


def is_end_mark(at: u64) -> bool:
    """Whether the word at *at* is ``--``: what follows is for the next kernel."""
    return load8(at) == 45 and load8(at + 1) == 45 and separates(load8(at + 2))


def after_end_mark(cmdline: VirtAddr) -> u64:
    """Address of what follows the word ``--``, or `ABSENT`."""
    if cmdline == 0:
        return ABSENT
    at = u64(cmdline)
    while load8(at) != 0 and at < cmdline + MAX_CMDLINE:
        if (at == cmdline or separates(load8(at - 1))) and is_end_mark(at):
            return at + 2
        at += 1
    return ABSENT


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
        if is_end_mark(at):
            return ABSENT
        matched = 0
        while byte_at(name, matched) != 0 and load8(at + matched) == byte_at(name, matched):
            matched += 1
        if byte_at(name, matched) == 0:
            return at + matched
        while not separates(load8(at)):
            at += 1
    return ABSENT


def has_word(cmdline: VirtAddr, name: str) -> bool:
    """Whether *name* is a whole word of the command line; words that only begin with it are passed over."""
    rest = find_option(cmdline, name)
    while rest != ABSENT and not separates(load8(rest)):
        while not separates(load8(rest)):
            rest += 1
        rest = find_option(VirtAddr(rest), name)
    return rest != ABSENT


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


def digit_at(at: u64) -> u64:
    """Value of the hexadecimal digit at *at*, or 16 when there is none."""
    byte = load8(at)
    if byte >= 48 and byte <= 57:
        return byte - 48
    byte = byte | 32
    if byte >= 97 and byte <= 102:
        return byte - 87
    return 16


def base_at(at: u64) -> u64:
    """16 for a number that starts with 0x, else 10."""
    return 16 if load8(at) == 48 and load8(at + 1) | 32 == 120 else 10


def is_number_at(at: u64) -> bool:
    """Whether a whole word is a number below 2^64, decimal or with 0x."""
    base = base_at(at)
    at = at + 2 if base == 16 else at
    value = u64(0)
    if separates(load8(at)):
        return False
    while not separates(load8(at)):
        digit = digit_at(at)
        if digit >= base or value > (MOST - digit) // base:
            return False
        value = value * base + digit
        at += 1
    return True


def number_at(at: u64) -> u64:
    """The number at *at*, which `is_number_at` has seen."""
    base = base_at(at)
    at = at + 2 if base == 16 else at
    value = u64(0)
    while not separates(load8(at)):
        value = value * base + digit_at(at)
        at += 1
    return value


@noinline
def contradicts(cmdline: VirtAddr, name: str) -> bool:
    """Whether the option *name* (which ends in ``=``) is given twice, with two values."""
    first = find_option(cmdline, name)
    again = first if first == ABSENT else find_option(VirtAddr(first), name)
    while again != ABSENT:
        i = u64(0)
        while load8(first + i) == load8(again + i) and not separates(load8(again + i)):
            i += 1
        if not separates(load8(first + i)) or not separates(load8(again + i)):
            return True
        again = find_option(VirtAddr(again), name)
    return False


def check_words(cmdline: VirtAddr) -> None:
    """Refuse a value that an option does not have, a seed that is no number, and words that contradict each other."""
    seed = find_option(cmdline, "kaslr=")
    if seed != ABSENT and not is_number_at(seed):
        report.panic("kaslr= on the command line needs a number below 2^64")
    if has_word(cmdline, "nokaslr") and (seed != ABSENT or has_word(cmdline, "kaslr")):
        report.panic("kaslr and nokaslr are both on the command line")
    twice = contradicts(cmdline, "kaslr=") or contradicts(cmdline, "pages=") or contradicts(cmdline, "layout=")
    if twice or contradicts(cmdline, "hibernate=") or contradicts(cmdline, "smp="):
        report.panic("an option is on the command line twice, with two values")
    if find_option(cmdline, "hibernate=") != ABSENT:
        if not has_value(cmdline, "hibernate=", "save") and not has_value(cmdline, "hibernate=", "resume"):
            report.panic("hibernate= on the command line takes save or resume")
    if find_option(cmdline, "pages=") != ABSENT:
        known = has_value(cmdline, "pages=", "4k") or has_value(cmdline, "pages=", "2m")
        if not known and not has_value(cmdline, "pages=", "1g"):
            report.panic("pages= on the command line takes 4k, 2m or 1g")
    if find_option(cmdline, "layout=") != ABSENT:
        if not has_value(cmdline, "layout=", "linux") and not has_value(cmdline, "layout=", "proposal"):
            report.panic("layout= on the command line takes linux or proposal")
