"""What a command line can say: contradictions, values that are none, and words that need more than the word."""

from __future__ import annotations

import pytest

from fivefold.boot import BootOptions
from fivefold.boot.command_line import check_given, check_menu, unknown_words
from fivefold.errors import MachineError

FINE = [
    "", "no5lvl", "kaslr", "nokaslr", "kaslr=0", "kaslr=18446744073709551615", "kaslr=0xFFFFffffFFFFffff",
    "kaslr kaslr=2", "kasan pages=1g layout=linux kexec_down", "pages=2m pages=2m", "quiet root=/dev/sda x.y=kaslr=1",
    "console=tty0 console=ttyS0", "kaslr=0" + 5000 * "0" + "7",
]  # fmt: skip
REFUSED = [
    ("pages=4k pages=2m", "'pages=4k' and 'pages=2m' are both on the command line"),
    ("kaslr=1 kaslr=2", "'kaslr=1' and 'kaslr=2' are both on the command line"),
    ("kaslr=1 nokaslr", "'kaslr=1' and 'nokaslr' are both on the command line"),
    ("nokaslr no5lvl kaslr", "'kaslr' and 'nokaslr' are both on the command line"),
    ("kaslr=seven", "'kaslr=seven' on the command line: expected kaslr= and a number below 2^64"),
    ("kaslr=", "'kaslr=' on the command line: expected kaslr= and a number below 2^64"),
    ("kaslr=0x", "'kaslr=0x' on the command line: expected kaslr= and a number below 2^64"),
    ("kaslr=-1", "'kaslr=-1' on the command line: expected kaslr= and a number below 2^64"),
    ("kaslr=1_000", "'kaslr=1_000' on the command line: expected kaslr= and a number below 2^64"),
    ("kaslr=1,kasan", "'kaslr=1,kasan' on the command line: expected kaslr= and a number below 2^64"),
    ("kaslr=18446744073709551616", "'kaslr=18446744073709551616' on the command line: expected kaslr= and a number"),
    ("kaslr=0x10000000000000000", "'kaslr=0x10000000000000000' on the command line: expected kaslr= and a number"),
    ("kaslr=" + 5000 * "9", "'kaslr=999"),
    ("pages=3k", "'pages=3k' on the command line: expected pages=4k, 2m or 1g"),
    ("pages", "'pages' on the command line: expected pages=4k, 2m or 1g"),
    ("layout=x", "'layout=x' on the command line: expected layout=linux or proposal"),
    ("no5lvl=1", "'no5lvl=1' on the command line: no5lvl takes no value"),
    ("kasan=1", "'kasan=1' on the command line: kasan takes no value"),
    ("previous=x", "'previous=x' on the command line: expected previous= and a number below 2^64"),
    ("kexec", "'kexec' on the command line needs more than the word; use --kexec"),
    ("a -- b", "'--' on the command line needs more than the word; use --kexec"),
    ("hibernate=later", "'hibernate=later' on the command line needs more than the word; use --hibernate"),
    ("smp=2", "'smp=2' on the command line needs more than the word; use --smp"),
    ("caf\u00e9", "the command line has characters that no loader passes on; expected ASCII text"),
    ("a\0b", "the command line has characters that no loader passes on; expected ASCII text"),
]  # fmt: skip


@pytest.mark.parametrize("text", FINE)
def test_what_can_be_meant(text: str) -> None:
    check_given(text)


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=[ascii(text) for text, _ in REFUSED])
def test_what_cannot_be_meant(text: str, message: str) -> None:
    with pytest.raises(MachineError) as refused:
        check_given(text)
    assert str(refused.value).startswith(message)


def test_words_that_the_kernel_does_not_know() -> None:
    assert unknown_words("no5lvl no5level kaslr=1 kasln=2 pages=4k fault=la57 nokaslr") == ["no5level", "kasln=2"]
    assert unknown_words("") == []


def test_no_more_than_is_read() -> None:
    """What is beyond would be lost in silence, a word cut in two with it."""
    BootOptions(entry="efi", cmdline="a" * 2048)
    BootOptions(cmdline="a" * 4095)
    with pytest.raises(
        MachineError, match=r"^a command line of 2049 characters; the EFI application reads 2048 at most$"
    ):
        BootOptions(entry="efi57", cmdline="a" * 2049)
    with pytest.raises(MachineError, match=r"^a command line of 4096 characters; the kernel reads 4095 at most$"):
        BootOptions(cmdline="a" * 4096)


@pytest.mark.parametrize(
    "text", ["", "smp=4", "kasan smp=0x2 no5lvl", "kexec", "smp=2 kexec -- smp=2 no5lvl", "kexec --", "poweroff"]
)
def test_what_a_menu_can_say(text: str) -> None:
    check_menu(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hibernate=save", "an ISO cannot hibernate: a restart loses what was saved in memory; use boot --hibernate"),
        ("-- no5lvl", "'--' on the command line is for a second kernel; expected kexec before it"),
        ("smp=0", "'smp=0' on the command line: expected smp= and 1 to 64"),
        ("smp=two", "'smp=two' on the command line: expected smp= and 1 to 64"),
        ("smp", "'smp=' on the command line: expected smp= and 1 to 64"),
        ("smp=2 smp=3", "'smp=2' and 'smp=3' are both on the command line"),
        ("kexec -- pages=5k", "'pages=5k' on the command line: expected pages=4k, 2m or 1g"),
        ("kexec=1", "'kexec=1' on the command line needs more than the word; use --kexec"),
    ],
)
def test_what_a_menu_cannot_say(text: str, message: str) -> None:
    with pytest.raises(MachineError) as refusal:
        check_menu(text)
    assert str(refusal.value) == message
