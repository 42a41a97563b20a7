"""Notes: how they are cut, which CPUs they give, what Linux says of itself."""

from __future__ import annotations

import pytest

from fivefold.errors import FormatError
from fivefold.memory.formats.notes import cpus_of, parse_vmcoreinfo, split_notes, vmcoreinfo_of


def test_names_and_padding(make) -> None:
    raw = make.note(b"CORE", 1, b"12345") + make.note(b"VMCOREINFO", 0, b"A=1\n") + bytes(64)
    notes = list(split_notes(raw, "demo"))

    assert [(note.name, note.kind, note.data) for note in notes] == [("CORE", 1, b"12345"), ("VMCOREINFO", 0, b"A=1\n")]
    assert vmcoreinfo_of(notes) == {"A": "1"}
    assert vmcoreinfo_of(notes[:1]) == {}


def test_qemus_notes_are_preferred(make) -> None:
    raw = make.note(b"CORE", 1, bytes(336)) + make.note(b"QEMU", 0, b"\1\0\0\0" + bytes(436))

    assert [cpu.source for cpu in cpus_of(split_notes(raw, "demo"), "demo")] == ["QEMU CPU note"]


def test_too_many(make) -> None:
    with pytest.raises(FormatError, match=r"^demo: more than 65536 notes$"):
        list(split_notes(make.note(b"X", 7, b"") * 65537, "demo"))


def test_vmcoreinfo_lines() -> None:
    raw = b"OSRELEASE=6.1.0\nNUMBER(phys_base) = -123\nnot a fact\nOSRELEASE=forged\nA=b=c\n\xff=1\n\0\0"

    assert parse_vmcoreinfo(raw) == {
        "OSRELEASE": "6.1.0",
        "NUMBER(phys_base)": "-123",
        "A": "b=c",
        "\N{REPLACEMENT CHARACTER}": "1",
    }
