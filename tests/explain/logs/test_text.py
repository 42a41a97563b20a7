"""Bytes to text, and lines that were broken in two: each rule by what it joins or undoes, and what it must leave."""

from __future__ import annotations

import pytest

from fivefold.explain.logs.register_text import parse_code, parse_registers
from fivefold.explain.logs.text.decoding import DAMAGED, decode, is_binary
from fivefold.explain.logs.text.unwrapping import CUT, join, unwrapped
from fivefold.explain.logs.trace import Code
from fivefold.memory import CpuState, Segment

TEN = "abcdefghij"
SOME = "line of a log\n" * 20
HEADER = "Content-Transfer-Encoding: quoted-printable\n\n"


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"a\r\nb\rc\n", "a\nb\nc\n"),
        (b"\xef\xbb\xbfab", "ab"),
        ("ab".encode("utf-16"), "ab"),
        (b"a\0b\0", "ab"),
        (b"\0a\0b", "ab"),
        (b"a\0b", f"a{DAMAGED}b"),
        (SOME.encode("utf-16-le"), SOME),
        (SOME.encode("utf-16-be"), SOME),
        # One letter of ten has both bytes, or one is a NUL: that is no text of ten letters any more.
        (f"{TEN[:9]}\u0142".encode("utf-16-le"), f"{DAMAGED.join(TEN[:9])}{DAMAGED}B{DAMAGED}"),
        (f"{TEN * 2}\u0142".encode("utf-16-le"), f"{TEN * 2}\u0142"),
        (f"{TEN * 2}\u0142".encode("utf-16-be"), f"{TEN * 2}\u0142"),
        (f"{TEN * 2}\0".encode("utf-16-le"), f"{TEN * 2}"),
        (f"{TEN * 2}\0".encode("utf-16-be"), f"{TEN * 2}"),
        (b"\x1b[1;31mred\x1b[0m and \x1b]0;title\x07plain", "red and plain"),
        (rb"one\u000atwo\u0009", "one\ntwo\t"),
        (b"a<br>b<p>c</p>d &lt;e&gt; &amp;lt;f&amp;gt; &amp;amp;amp;", "a\nbc\nd <e> <f> &amp;"),
        (b"> > quoted\n\t>more\n a > b", "quoted\nmore\n a > b"),
        (b"a=3Db c=3Dd", "a=b c=d"),
        (b"a=3Db c=d", "a=3Db c=d"),
        (b"a=3Db=", "a=b="),
        (b"a=3Db c=d=", "a=3Db c=d="),
        (f"{HEADER}a=3Db c=d".encode(), f"{HEADER}a=b c=d"),
        (b"a=20b", "a=20b"),
        (b"long=\nline a=20b", "longline a b"),
        (b"x = y", "x = y"),
    ],
)
def test_decoded(raw: bytes, text: str) -> None:
    assert decode(raw) == text


@pytest.mark.parametrize(
    ("head", "binary"),
    [
        (b"\xf8" * 9, False),
        (b"\0" + b"a" * 19 + b"\xf8", False),
        (b"\0" + b"a" * 18 + b"\xf8", True),
        (b"\0" + b"a" * 18 + b"\xf7", False),
        (b"\0" + b"a" * 18 + b"\x89", True),
        (b"\0" + b"a" * 18 + b"\x88", False),
        (b"\0" + b"a" * 18 + b"\x01", True),
        (b"\0" + b"a" * 18 + b"\x1b", False),
        (b"\0" * 9, True),
        (b"\xff\xfe\0\0\x01\x01", False),
        ("\x01\x02\x03\x04".encode("utf-16-le"), False),
    ],
)
def test_binary(head: bytes, binary: bool) -> None:
    assert is_binary(head) is binary


UNABLE = "BUG: unable to handle page fault for"
WIDE = "[   12.000006] FS:  0000000000000000(0000) GS:ffff88813bd00000(0000)"


@pytest.mark.parametrize(
    ("first", "second", "whole"),
    [
        ("RIP:", " 0010:vec_push+0x19/0x50", "RIP: 0010:vec_push+0x19/0x50"),
        ("RIP:", "what is that", None),
        ("", "0010:vec_push+0x19/0x50", None),
        ("RIP:", "", None),
        (UNABLE, "address: ffffc90001a42000", f"{UNABLE} address: ffffc90001a42000"),
        (UNABLE, "[   12.0] address: ffffc90001a42000", None),
        (UNABLE, "address", None),
        (f"{UNABLE} address: ffffc90001a42000", "address: ffffc90001a42000", None),
        (f"{WIDE} CR2: ffffc900", "01a42000 CR3: 10a5d4003", f"{WIDE} CR2: ffffc90001a42000 CR3: 10a5d4003"),
        (f"{WIDE} CR2: ffffc900", "01a4200", None),
        (f"{WIDE} CR2: ffffc900", "01a420001", None),
        ("CR2: ffffc900", "01a42000 CR3: 10a5d4003", None),
        (f"CR2: {'ffffc900':>55}"[-60:].replace("    ", "RBX:", 1), "01a42000", None),
        ("PGD 100000067", "P4D 100000067 PUD 0", "PGD 100000067 P4D 100000067 PUD 0"),
        ("PGD 100000067", "and more", None),
        ("Code: 01 02", "03 <04>", "Code: 01 02 03 <04>"),
        (f"Code: {'90 ' * 62}90", "<c3>", f"Code: {'90 ' * 62}90 <c3>"),
        (f"Code: {'90 ' * 63}90", "<c3>", None),
    ],
)  # fmt: skip
def test_joined(first: str, second: str, whole: str | None) -> None:
    assert join(first, second) == whole


def test_numbers_of_lines_are_those_of_their_first_parts() -> None:
    assert list(unwrapped([])) == []
    assert list(unwrapped(["a ", "RIP:\t", " 0010:f+0x1/0x2  ", "", "b"])) == [
        (1, "a"), (2, "RIP: 0010:f+0x1/0x2"), (4, ""), (5, "b"),
    ]  # fmt: skip


def test_four_parts_are_joined_and_no_fifth() -> None:
    parts = ["PGD 1", "P4D 2", "PUD 3", "PMD 4", "PTE 5"]
    assert list(unwrapped(parts)) == [(1, "PGD 1 P4D 2 PUD 3 PMD 4"), (5, "PTE 5")]


def test_a_number_that_goes_on_is_none() -> None:
    assert list(unwrapped(["RBX: 12ab", "34cd", "end"])) == [(1, f"RBX: 12ab{CUT}"), (2, "34cd"), (3, "end")]
    assert list(unwrapped(["RBX: 12ab", "34cd ef"])) == [(1, "RBX: 12ab"), (2, "34cd ef")]
    assert list(unwrapped(["some text", "34cd"])) == [(1, "some text"), (2, "34cd")]
    assert list(unwrapped(["f", "34cd"])) == [(1, f"f{CUT}"), (2, "34cd")]
    assert list(unwrapped(["", "34cd"])) == [(1, ""), (2, "34cd")]


def cpu(**numbers: int) -> CpuState:
    control = {name: numbers.pop(name) for name in ("cr0", "cr2", "cr3", "cr4", "efer") if name in numbers}
    return CpuState("text", general=numbers, segments={}, **control)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nothing", None),
        ("RAX=0000000000000001 RBX=00000002", cpu(rax=1)),
        ("R08=000000000000000a R09: 000000000000000b R10=000000000000000c", cpu(r8=10, r9=11, r10=12)),
        ("EAX=0000001f EIP=00001000 EFL=00010246", cpu(rax=31, rip=4096, rflags=0x10246, narrow=1)),
        ("EAX: 0000001f ESP: 00002000", cpu(rax=31, rsp=0x2000)),
        ("EAX=000000000000001f", None),
        ("RAX=0000000000000001 EFLAGS=00010246", cpu(rax=1, rflags=0x10246)),
        ("RAX=0000000000000001 EFLAGS=0000000000010246", cpu(rax=1, rflags=0x10246)),
        ("RAX=0000000000000001 RFL=0000000000010246", cpu(rax=1)),
        ("RAX=0000000000000001 CR2=00001000", cpu(rax=1)),
        ("EAX=00000001 CR2=00001000", cpu(rax=1, narrow=1, cr2=4096)),
        ("RAX=0000000000000001 CR0=80050033 CR4=00000000000006f0", cpu(rax=1, cr0=0x80050033)),
        ("RAX=0000000000000001 EFER=0000000000000d01", cpu(rax=1, efer=0xD01)),
        ("RAX=0000000000000001 CR4: 00000000000006f0", cpu(rax=1, cr4=0x6F0)),
        ("RAX=0000000000000001 CPL=3", cpu(rax=1, cpl=3)),
        ("RAX=0000000000000001 CS: 0033 SS: 0018", cpu(rax=1, cpl=3)),
        ("RAX=0000000000000001 TSS64-busy", cpu(rax=1, lma=1)),
        ("RAX=0000000000000001 TSS32-busy", cpu(rax=1, lma=0)),
        ("RAX=0000000000000001 RBX=0000000000000002 RAX=0000000000000003 RCX=0000000000000004", cpu(rax=1, rbx=2)),
    ],
)  # fmt: skip
def test_registers(text: str, expected: CpuState | None) -> None:
    assert parse_registers(text, "text") == expected


def test_segments_and_tables() -> None:
    found = parse_registers(
        "RAX=0000000000000001\n"
        "CS =0010 0000000000000000 ffffffff 00a09b00\nCS =0018 0000000000000000 ffffffff 00a09b00\n"
        "GDT=     fffffe0000001000 0000007f\nIDT=     fffffe0000000000 00000fff\nIDT=     fffffe0000000000 000000ff",
        "text",
    )
    assert found is not None and found.segments == {
        "cs": Segment(0x10, 0, 0xFFFF_FFFF, 0xA0_9B00),
        "gdt": Segment(0, 0xFFFF_FE00_0000_1000, 0x7F, 0),
        "idt": Segment(0, 0xFFFF_FE00_0000_0000, 0xFFF, 0),
    }


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Code: 48 8b <c5> fd", Code(bytes.fromhex("488bc5fd"), 2)),
        ("Code=<c5> fd", Code(bytes.fromhex("c5fd"), 0)),
        ("Code: 48 8b c5 fd", None),
        ("Code: <48> 8b <c5> fd", None),
        ("no such thing", None),
    ],
)
def test_code(text: str, code: Code | None) -> None:
    assert parse_code(text) == code
