"""What may be started next: images are read as if an enemy had written them; the mode must fit."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fivefold.arch import LA48, LA57, PagingMode
from fivefold.units import GIB, MIB

Guards = Callable[..., None]
KERNEL = "fivefold.kernel"
PAGE = 4096
OK, NOT_AN_IMAGE, CUT_SHORT, CANNOT = 0, 2, 3, 4
FIRST = 2 * MIB
Segment = tuple[int, int, int, int]
"""Offset in the file, physical address, bytes in the file, bytes in memory."""


def image(
    segments: tuple[Segment, ...] = ((512, FIRST, 32, PAGE),), flags: int | None = 1, entry: int = FIRST + 16
) -> bytes:
    """An ELF file with *segments* and, unless *flags* is None, our note."""
    note = struct.pack("<III12sI", 9, 4, 1, b"Fivefold", flags or 0)
    rows = [struct.pack("<IIQQQQQQ", 1, 5, at, 0, pa, size, room, PAGE) for at, pa, size, room in segments]
    rows += [struct.pack("<IIQQQQQQ", 4, 4, 448, 0, 0, len(note), len(note), 4)] if flags is not None else []
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHH", 2, 62, 1, entry, 64, 0, 0, 64, 56, len(rows)
    )
    data = bytearray(1024)
    data[: len(head)] = head
    data[64 : 64 + 56 * len(rows)] = b"".join(rows)
    data[448 : 448 + len(note)] = note
    data[512:544] = bytes(range(1, 33))
    return bytes(data)


def checked(code: Any, mode: PagingMode, data: bytes, package: str = KERNEL) -> tuple[int, Any, int]:
    helpers = code(
        mode, "kexec.check_image", "kexec.place_image", "memblock", package=package, extents=[(MIB, 4 * MIB)]
    )
    at = helpers.plain.map(bytearray(data))
    return int(helpers.call("kexec.check_image", at, len(data))), helpers, at


def with_word(data: bytes, offset: int, value: int, size: int = 8) -> bytes:
    return data[:offset] + value.to_bytes(size, "little") + data[offset + size :]


CASES = {
    "ours": (image(), OK),
    "two segments": (image(((512, FIRST, 32, PAGE), (512, FIRST + PAGE, 8, PAGE))), OK),
    "no ELF": (b"\0" * 1024, NOT_AN_IMAGE),
    "32 bits": (with_word(image(), 4, 1, 1), NOT_AN_IMAGE),
    "empty": (b"\x7fELF\x02\x01\x01\0", NOT_AN_IMAGE),
    "no segments": (image(()), NOT_AN_IMAGE),
    "headers of another size": (with_word(image(), 54, 64, 2), NOT_AN_IMAGE),
    "too many headers": (with_word(image(), 56, 17, 2), NOT_AN_IMAGE),
    "headers beyond the end": (with_word(image(), 32, 1000), CUT_SHORT),
    "headers far away": (with_word(image(), 32, (1 << 64) - 64), CUT_SHORT),
    "cut in a segment": (image()[:530], CUT_SHORT),
    "offset that wraps": (image((((1 << 64) - 16, FIRST, 32, PAGE),)), CUT_SHORT),
    "more in the file than in memory": (image(((512, FIRST, 32, 16),)), NOT_AN_IMAGE),
    "a segment of 2 GiB": (image(((512, FIRST, 32, 2 * GIB),)), NOT_AN_IMAGE),
    "segments 2 GiB apart": (image(((512, FIRST, 32, PAGE), (512, FIRST + 2 * GIB, 32, PAGE))), NOT_AN_IMAGE),
    "an address that wraps": (
        image(((512, FIRST, 32, PAGE), (512, (1 << 64) - PAGE, 32, 2 * PAGE))),
        NOT_AN_IMAGE,
    ),
    "entry below": (image(entry=FIRST - 1), NOT_AN_IMAGE),
    "entry above": (image(entry=FIRST + PAGE), NOT_AN_IMAGE),
    "note cut short": (with_word(image(), 64 + 56 + 32, 1 << 40), CUT_SHORT),
}


@pytest.mark.parametrize("name", CASES)
def test_images(code: Any, mode: PagingMode, name: str) -> None:
    data, want = CASES[name]
    assert checked(code, mode, data)[0] == want


@pytest.mark.parametrize(
    "data", [image(flags=None), image(flags=0), with_word(image(), 448 + 8, 2, 4), with_word(image(), 448 + 12, 0x41)]
)
def test_rs_13_and_rs_48_five_levels_start_no_image_that_cannot(code: Any, guards: Guards, data: bytes) -> None:
    """One that lacks the note, or has it without the flag; with four levels any image will do."""
    assert checked(code, LA48, data)[0] == OK

    def check(package: str) -> None:
        assert checked(code, LA57, data, package)[0] == CANNOT

    guards(check, "kexec.py", ("        return CANNOT_FIVE_LEVELS\n", "        return OK\n"))


def test_a_wrapped_segment_would_be_written_before_its_place(code: Any, guards: Guards) -> None:
    def check(package: str) -> None:
        assert checked(code, LA57, CASES["an address that wraps"][0], package)[0] == NOT_AN_IMAGE

    guards(check, "kexec.py", ("P_PHYSICAL) > FRAME_MASK:", "P_PHYSICAL) > u64(0) - 1:"))


def test_an_image_is_placed_whole_and_the_rest_is_clear(code: Any, mode: PagingMode) -> None:
    """In memory that was full of ones; two segments, one of a size that is no whole word."""
    data = image(((512, FIRST, 32, PAGE), (512, FIRST + PAGE, 13, 2 * PAGE)))
    outcome, helpers, at = checked(code, mode, data)
    assert outcome == OK
    helpers.add_memory()
    place = helpers.call("kexec.place_image", at)
    assert place % (2 * MIB) == 0
    first = bytes(range(1, 33)).ljust(PAGE, b"\0")
    assert helpers.ram.read(place, 3 * PAGE) == first + bytes(range(1, 14)).ljust(2 * PAGE, b"\0")
    assert helpers.ram.read(place + 3 * PAGE, 8) == b"\xff" * 8


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 55), st.sampled_from([0, 1, 64, 1 << 20, 1 << 63, (1 << 64) - 8]))),
    size=st.integers(64, 1024),
)
def test_whatever_the_file_says_only_the_file_is_read(code: Any, changes: list[tuple[int, int]], size: int) -> None:
    """And what is accepted can be placed: a read or write outside would be refused by the memory itself."""
    data = image(((512, FIRST, 32, PAGE), (512, FIRST + PAGE, 13, 2 * PAGE)))
    for word, value in changes:
        data = with_word(data, 8 * word, value)
    outcome, helpers, at = checked(code, LA57, data[:size])
    if outcome == OK and helpers.get("kexec.end") - helpers.get("kexec.first") < MIB:
        helpers.add_memory()
        helpers.call("kexec.place_image", at)


def test_numbers_and_texts_of_the_next_command_line(code: Any) -> None:
    helpers = code(LA48, "kexec.put_number", extents=[(0x1000, 0x2000)])
    end = helpers.call("kexec.put_number", helpers.window + 0x1000, 0x0123_4567_89AB_CDEF)
    assert helpers.ram.read(0x1000, end - helpers.window - 0x1000) == b"0x0123456789abcdef"


def test_rs_12_and_rfc_b19_the_mode_is_kept_up_to_the_jump(code: Any, processor: Any, guards: Guards) -> None:
    """CR4 without LA57 is a fault in long mode; `tests/boot/options/test_kexec.py` has the jump itself."""

    def check(package: str) -> None:
        for mode, cr4, kept in ((LA57, 0x10A0, 1), (LA57, 0xA0, 0), (LA48, 0xA0, 1), (LA48, 0x10A0, 0)):
            cpu = processor(cr4=cr4)
            helpers = code(mode, "kexec.keeps_mode", package=package, extents=[(0x1000, 0x2000)], processor=cpu)
            assert helpers.call("kexec.keeps_mode") == kept

    guards(check, "kexec.py", ("    return (read_cr4() & CR4_LA57 == 0) == p4d_folded()", "    return read_cr4() != 0"))


@pytest.mark.parametrize(
    ("start", "end", "want"),
    [
        (0, 0x9_F000, 0x9_D000),
        (0, MIB, 0x9_D000),
        (0x1_0000, 0x1_2000, 0x1_0000),
        (0x1_0000, 0x1_1000, 0),
        (MIB, 4 * MIB, 0),
    ],
)
def test_rs_05_going_down_takes_low_memory_that_is_there(
    code: Any, guards: Guards, start: int, end: int, want: int
) -> None:
    """Beside it a graphics card may be, or nothing."""

    def check(package: str) -> None:
        helpers = code(LA57, "smp.choose_place", "memblock", package=package, extents=[(MIB, 2 * MIB)])
        helpers.call("memblock.add", start, end - start)
        helpers.call("smp.choose_place")
        assert helpers.get("smp.place") == want

    guards(check, "smp.py", ("memblock.find_below(LOW_PAGES * PAGE_SIZE, PhysAddr(TRAMPOLINE_LIMIT))", "0x9_E000"))
