"""The header by which GRUB knows the image, read as the specification says; a loader that follows it; and the entry."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from fivefold.boot import DEFAULT_LOAD_ADDRESS, Image, Run
from fivefold.boot.image.multiboot2 import HEADER_SIZE, WITHIN
from fivefold.machine.loading.elf import load_segments
from fivefold.units import GIB, MIB, PhysAddr

Boot = Callable[..., Run]
MAGIC = 0xE852_50D6


def found(data: bytes) -> int | None:
    """Offset of the header in a file, None without one."""
    for at in range(0, min(len(data), WITHIN) - 16, 8):
        if sum(words := struct.unpack_from("<4I", data, at)) & 0xFFFF_FFFF == 0 and words[0] == MAGIC:
            return at
    return None


def tags_of(data: bytes) -> dict[int, tuple[int, ...]]:
    """The tags of a file's header by type: the 32-bit words of each."""
    at = found(data)
    assert at is not None
    architecture, size = struct.unpack_from("<II", data, at + 4)
    assert (architecture, size % 8, size <= HEADER_SIZE) == (0, 0, True)
    end, at = at + size, at + 16
    tags = {}
    while at < end:
        kind, flags, size = struct.unpack_from("<HHI", data, at)
        assert (flags, kind not in tags) == (0, True)
        tags[kind] = struct.unpack_from(f"<{size // 4 - 2}I", data, at + 8)
        at += size + -size % 8
    assert (at, tags.popitem()) == (end, (0, ()))
    return tags


@pytest.mark.parametrize("load", [2 * MIB, DEFAULT_LOAD_ADDRESS, 3 * GIB], ids=hex)
def test_tags(image: Image, load: int) -> None:
    tags = tags_of(image.place(load))
    assert tags.keys() == {1, 2, 3, 6, 10}
    assert tags[1] == (6,), "a memory map is wanted"
    assert tags[3] == (image.physical("multiboot2_entry", load),)
    assert tags[10] == (load, 0xFFFF_FFFF, 2 * MIB, 1), "anywhere from there on, low rather than high"


@pytest.mark.parametrize("load", [2 * MIB, 3 * GIB], ids=hex)
def test_a_loader_that_follows_the_address_tag_loads_what_the_segments_say(image: Image, load: int) -> None:
    data = image.place(load)
    header, start, data_end, end = tags_of(data)[2]
    offset = found(data)
    assert offset is not None and start <= header
    raw = data[offset - (header - start) :][: data_end - start].ljust(end - start, b"\0")
    segments = load_segments(data)
    assert (start, end) == (segments[0].start, segments[-1].end)
    for segment in segments:
        assert raw[segment.start - start : segment.end - start].startswith(segment.data)


@pytest.mark.parametrize("load", [4 * GIB, 5 * GIB], ids=hex)
def test_no_header_above_4_gib(image: Image, load: int) -> None:
    """No loader that starts in 32 bits can put it there; it is not invited to put it elsewhere."""
    assert found(image.place(load)) is None
    assert found(image.place(load - 3 * GIB)) is not None


GIVEN = 0x9_0008
MEMORY = 32 * MIB
ROWS = [(0, 0x9_FC00, 1), (0xF_0000, 0x1_0000, 2), (MIB, MEMORY - MIB, 1)]
MAP = struct.pack("<IIII", 6, 16 + 24 * len(ROWS), 24, 0) + b"".join(struct.pack("<QQII", *row, 0) for row in ROWS)
TEXT = struct.pack("<II16s", 1, 23, b"no5lvl kaslr=7\0")
END = struct.pack("<II", 0, 8)


def information(*tags: bytes, size: int | None = None) -> bytes:
    """What the loader leaves; *size* is what it says of it."""
    data = b"".join(tags)
    return struct.pack("<II", 8 + len(data) if size is None else size, 0) + data


def enter(boot: Boot, image: Image, given: bytes, at: int = GIVEN, magic: int = 0x36D7_6289) -> Run:
    """Start as a multiboot2 loader does, with its information at *at*."""

    def hand_over(machine: Any) -> None:
        machine.memory.write(PhysAddr(at), given)
        for register, value in (("rax", magic), ("rbx", at)):
            machine._engine.write(register, value)

    placed = {"image": image.place(DEFAULT_LOAD_ADDRESS, "multiboot2_entry")}
    return boot("la57", engine="unicorn", before=hand_over, guest=placed, memory=MEMORY, cmdline="no5lvl kaslr=7")


def test_entered(boot: Boot, image: Image) -> None:
    """All checks, from outside too: the memory that is mapped is what the tags say; the words are theirs."""
    run = enter(boot, image, information(TEXT, MAP, END))
    assert [check for check in run.checks if not check.ok] == []
    assert (run.mode, run.reason) == ("la48", "no5lvl on the command line")


@pytest.mark.parametrize(
    ("given", "at", "message"),
    [
        (information(TEXT, END), GIVEN, "multiboot2's information has no memory map"),
        (information(TEXT, MAP), GIVEN, "multiboot2's information has a tag that does not fit, or no end"),
        (information(MAP, END, size=7), GIVEN, "multiboot2's information has a size or place that cannot be"),
        (information(MAP, END), GIVEN + 4, "multiboot2's information has a size or place that cannot be"),
        (information(MAP, END), DEFAULT_LOAD_ADDRESS + 0x9_0000,
         "multiboot2's information has a size or place that cannot be"),
    ],
    ids=["no map", "no end", "no size", "not aligned", "in the image"],
)  # fmt: skip
def test_refused(boot: Boot, image: Image, given: bytes, at: int, message: str) -> None:
    """By the code that is in the image, as it is for 32 bits; the walk has its tests in `kernel/`."""
    run = enter(boot, image, given, at)
    assert f"fivefold: {message}\n" in run.output
    assert str(run.event) == "exit with code 18"


def test_another_magic_number_is_met_with_silence(boot: Boot, image: Image) -> None:
    """Nothing says what EBX is then, so nothing is read or written there."""
    run = enter(boot, image, information(MAP, END), magic=0x2BAD_B002)
    assert run.output == ""
    assert run.event.startswith("halted")
