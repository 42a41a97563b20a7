"""What the kernel's command line can say. What cannot be meant is refused before a machine is started.

The kernel refuses the same with a message of its own (`kernel/params.py`): not every loader is ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from fivefold.errors import MachineError
from fivefold.kernel.boot.start_info import MAX_CMDLINE
from fivefold.kernel.smp.smp import MAX_CPUS

MOST: Final = MAX_CMDLINE - 1
"""Characters that the kernel reads."""
LAYOUTS: Final = ("linux", "proposal")
FLAGS: Final = ("no5lvl", "kaslr", "nokaslr", "kasan", "kexec_down", "poweroff")
"""Words that stand alone."""
NUMBERS: Final = ("kaslr", "previous", "previous_end")
"""What takes a number below 2^64, decimal or with 0x."""
CHOICES: Final = {"pages": ("4k", "2m", "1g"), "layout": LAYOUTS}
OWN_OPTION: Final = {
    "kexec": "--kexec",
    "--": "--kexec",
    "hibernate": "--hibernate",
    "smp": "--smp",
}
"""Words that say what the host must do too, and the option that does both."""
KNOWN: Final = frozenset((*FLAGS, *NUMBERS, *CHOICES, *OWN_OPTION, "fault"))
_MOST_DIGITS: Final = 20
"""Of a decimal number below 2^64."""


def check_menu(text: str) -> None:
    """Refuse what the menu of an ISO cannot ask for; more CPUs and a second kernel it can, as the host has no part.

    What follows ``kexec --`` is the second kernel's command line.
    """
    lines = f" {text} ".split(" -- ")
    if "hibernate" in {word.partition("=")[0] for word in text.split()}:
        raise MachineError("an ISO cannot hibernate: a restart loses what was saved in memory; use boot --hibernate")
    if any("kexec" not in line.split() for line in lines[:-1]):
        raise MachineError("'--' on the command line is for a second kernel; expected kexec before it")
    for line in lines:
        words = line.split()
        counts = [word.partition("=")[2] for word in words if word.partition("=")[0] == "smp"]
        if any(not _is_number(count) or not 1 <= _value(count) <= MAX_CPUS for count in counts):
            raise MachineError(f"'smp={counts[0]}' on the command line: expected smp= and 1 to {MAX_CPUS}")
        if len(set(counts)) > 1:
            raise MachineError(f"'smp={counts[0]}' and 'smp={counts[1]}' are both on the command line")
        check_given(" ".join(word for word in words if word != "kexec" and word.partition("=")[0] != "smp"))


def check_given(text: str) -> None:
    """Refuse with `MachineError` what a user cannot ask for: words that contradict each other, or say nothing."""
    if "\0" in text or not text.isascii():
        raise MachineError("the command line has characters that no loader passes on; expected ASCII text")
    seen: dict[str, str] = {}
    for word in text.split():
        name, equals, value = word.partition("=")
        if (option := OWN_OPTION.get(name)) is not None:
            raise MachineError(f"{word!r} on the command line needs more than the word; use {option}")
        problem = _problem(name, value if equals else None)
        if problem:
            raise MachineError(f"{word!r} on the command line: {problem}")
        if (name in CHOICES or name in NUMBERS) and equals and seen.setdefault(name, word) != word:
            raise MachineError(f"{seen[name]!r} and {word!r} are both on the command line")
    drawn = next((word for word in text.split() if word.partition("=")[0] == "kaslr"), None)
    if drawn is not None and "nokaslr" in text.split():
        raise MachineError(f"{drawn!r} and 'nokaslr' are both on the command line")


def unknown_words(text: str) -> list[str]:
    """The words of *text* that the kernel does not know: it passes them over, since loaders add words of their own."""
    return [word for word in text.split() if word.partition("=")[0] not in KNOWN]


def near_word(unknown: str) -> str:
    """The word that the kernel knows and that *unknown* may be a slip for; "" where none is near."""
    from difflib import get_close_matches

    name, equals, value = unknown.partition("=")
    near = get_close_matches(name, sorted(KNOWN), 1, 0.7)
    return f"{near[0]}{equals}{value}" if near else ""


def _problem(name: str, value: str | None) -> str:
    """Why an option cannot be given like this, "" if it can. A name that the kernel does not know is passed on."""
    if name in CHOICES and value not in CHOICES[name]:
        return f"expected {name}={_either(CHOICES[name])}"
    if name in NUMBERS and (value is not None or name not in FLAGS) and not _is_number(value or ""):
        return f"expected {name}= and a number below 2^64"
    if name in FLAGS and name not in NUMBERS and value is not None:
        return f"{name} takes no value"
    return ""


def _value(number: str) -> int:
    """What `_is_number` has seen; leading zeros are none of octal's."""
    return int(number, 16 if number.lower().startswith("0x") else 10)


def _either(values: Iterable[str]) -> str:
    *most, last = values
    return f"{', '.join(most)} or {last}"


def _is_number(value: str) -> bool:
    """Whether the kernel reads *value* as a number: no sign, no underscore, no octal."""
    lower = value.lower()
    base = 16 if lower.startswith("0x") else 10
    digits = lower[2:] if base == 16 else lower
    if not digits or any(digit not in "0123456789abcdef"[:base] for digit in digits):
        return False
    # Python refuses to convert thousands of decimal digits.
    significant = digits.lstrip("0") or "0"
    return len(significant) <= _MOST_DIGITS and int(significant, base) < 1 << 64
