"""What is recognised by its first bytes, and what is refused by name."""

from __future__ import annotations

import lzma
from pathlib import Path
from typing import Any

import pytest

from fivefold.errors import FormatError, MachineError
from fivefold.memory import SourceOptions, free_memory, is_memory, open_file, open_source


def test_the_content_decides(make, saved) -> None:
    formats = {
        "ELF core": make.elf_core([(0x1000, bytes(4096))]),
        "LiME": make.lime([(0x1000, bytes(4096))]),
        "kdump": make.kdump({3: bytes(4096)}),
        "kdump, flattened": make.flattened(make.kdump({3: bytes(4096)})),
        "raw image": bytes(4096),
        "ELF core in xz": lzma.compress(make.elf_core([(0x1000, bytes(4096))])),
    }
    for name, content in formats.items():
        with open_source(saved(content)) as source:
            assert (source.format, source.live, source.torn) == (name, False, False)


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"PAGEDUMP", "a 32-bit Windows crash dump"),
        (b"LiMS", "a savevm image"),
    ],
)
def test_known_but_not_read(saved, head: bytes, what: str) -> None:
    path = saved(head + bytes(4096))
    with pytest.raises(FormatError) as error:
        open_source(path)
    assert (
        str(error.value) == f"{path} is {what}; expected a raw image, an ELF core or another format of docs/memory.md"
    )


def test_options_by_name_or_together(saved) -> None:
    path = saved(bytes(8192))
    options = SourceOptions(ram_map="0x1000-0x2000")

    assert open_source(path, options).extents == [(0x1000, 0x2000)]
    assert open_source(path, options, ram_map="0x1000-8K=0").extents == [(0x1000, 0x2000)]
    assert open_file(path, options).extents == [(0x1000, 0x2000)]
    assert open_source(f"file:{path}").extents == [(0, 0x2000)]
    with pytest.raises(TypeError):
        open_source(path, colour="red")


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("pid:abc", ValueError, "'abc' is not a process number; expected pid:NUMBER"),
        ("pid:999999999", MachineError, "cannot read the command line of process 999999999: No such file or directory"),
        ("qmp:/absent/socket", MachineError, "cannot connect to /absent/socket for QMP: No such file or directory"),
        ("qmp:", ValueError, "'qmp:' has no address; expected qmp:SOCKET, libvirt:DOMAIN, pid:NUMBER, gdb:HOST:PORT"),
        (
            "gdb:localhost:1",
            MachineError,
            "gdb:localhost:1 stops the guest while it is attached and lets it run afterwards; allow that with --freeze",
        ),
    ],
)
def test_live_sources_that_are_not_there(spec: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        open_source(spec)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("limit", "used", "half"),
    [(None, None, 512 << 20), ("max", "5", 512 << 20), (str(300 << 20), str(100 << 20), 100 << 20), ("5", "7", 0)],
)
def test_half_of_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None, used: str | None, half: int
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  4194304 kB\nMemAvailable:  1048576 kB\n")
    for name, text in (("memory.max", limit), ("memory.current", used)):
        if text is not None:
            (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(free_memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(free_memory, "GROUP", tmp_path)
    assert (SourceOptions().most_copied, SourceOptions(max_copy=7).most_copied) == (half, 7)
    monkeypatch.setattr(free_memory, "MEMINFO", tmp_path / "none")
    monkeypatch.setattr(free_memory, "GROUP", tmp_path / "none")
    assert SourceOptions().most_copied == 4 << 30


@pytest.mark.parametrize(
    ("head", "is_one"),
    [
        (b"\x7fELF\2\1\1", True),
        (b"EMiL", True),
        (b"AVML", True),
        (b"KDUMP   ", True),
        (b"DISKDUMP", True),
        (b"makedumpfile", True),
        (b"PAGEDU64", True),
        (b"PAGEDUMP", False),
        (b"LiMS", False),
        (b"QEVM", True),
        (b"LibvirtQemudSave", True),
        (b"LibvirtQemudPart", True),
        (b"QFI\xfb", True),
        (b"\x14\x20\x28\x01", True),
        *(
            (magic, True)
            for magic in (b"\xd0\xbe\xd2\xbe", b"\xd1\xba\xd1\xba", b"\xd2\xbe\xd2\xbe", b"\xd3\xbe\xd3\xbe")
        ),
        (b"\0\0\x64\x86\x84\x19\x10\x07", True),
        (b"<4>[    0.000000] BUG", False),
    ],
)
def test_memory_by_its_first_bytes(head: bytes, is_one: bool) -> None:
    assert is_memory(head.ljust(16, b"\0")) is is_one
    assert not is_memory(b"x" + head)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"live_ram": "magic"},
            ValueError,
            "live_ram is 'magic': unknown way to read RAM; expected one of auto, file, ",
        ),
        ({"progress": 3}, TypeError, "progress is 3; expected a function of two numbers, or None"),
        ({"freeze": 1}, TypeError, "freeze"),
        ({"timeout": "1"}, TypeError, "timeout"),
        ({"ram_map": 5}, TypeError, "ram_map"),
        ({"max_copy": 1.5}, TypeError, "max_copy"),
        ({"max_unpacked": "1"}, TypeError, "max_unpacked"),
    ],
)
def test_options_that_make_no_sense(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        SourceOptions(**changes)
    assert message in str(caught.value)
    assert SourceOptions(timeout=3, progress=print, live_ram="file").timeout == 3


def test_what_is_refused_is_closed(saved, make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what was unpacked of it; and a path object is a file whatever its name."""
    monkeypatch.setattr("fivefold.memory.files.SMALL", 100)
    broken = make.elf_core([(0x1000, bytes(8192))])[:-1]
    before = len(list(Path("/proc/self/fd").iterdir()))
    for data in (broken, lzma.compress(broken), b"PAGEDUMP" + bytes(4096)):
        with pytest.raises(FormatError):
            open_source(saved(data))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    for spec in (Path("qmp:x"), Path("-"), "file:qmp:x"):
        with pytest.raises(MachineError, match=r"^cannot open (qmp:x|-): No such file or directory$"):
            open_source(spec)
    with pytest.raises(TypeError, match="spec"):
        open_source(7)  # type: ignore[arg-type]
