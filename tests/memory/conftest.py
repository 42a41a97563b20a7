"""Files in each format, made field by field, and one-shot servers that talk a script."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

PAGE = 4096


def note(name: bytes, kind: int, data: bytes) -> bytes:
    owner = name + b"\0"
    return (
        struct.pack("<III", len(owner), len(data), kind) + owner + bytes(-len(owner) % 4) + data + bytes(-len(data) % 4)
    )


def elf_core(
    segments: list[tuple[int, bytes]],
    notes: bytes = b"",
    *,
    kind: int = 4,
    machine: int = 62,
    ident: bytes = b"\x7fELF\x02\x01\x01",
    extended: bool = False,
) -> bytes:
    """An ELF64 core: PT_NOTE, then a PT_LOAD for each (physical address, bytes)."""
    count = len(segments) + 1
    table = 64 + (64 if extended else 0)
    at = table + 56 * count
    headers, body = struct.pack("<IIQQQQQQ", 4, 0, at, 0, 0, len(notes), len(notes), 0), notes
    for pa, data in segments:
        headers += struct.pack("<IIQQQQQQ", 1, 0, at + len(body), 0, pa, len(data), len(data), 0)
        body += data
    head = struct.pack(
        "<16sHHIQQQIHHHHHH",
        ident,
        kind,
        machine,
        1,
        0,
        table,
        64 if extended else 0,
        0,
        64,
        56,
        0xFFFF if extended else count,
        64,
        0,
        0,
    )
    section = struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, count, 0, 0) if extended else b""
    return head + section + headers + body


def lime(ranges: list[tuple[int, bytes]]) -> bytes:
    return b"".join(
        struct.pack("<IIQQ8x", 0x4C694D45, 1, start, start + len(data) - 1) + data for start, data in ranges
    )


def kdump(
    pages: dict[int, bytes],
    *,
    pack: Callable[[bytes], bytes] = zlib.compress,
    flags: int = 1,
    version: int = 6,
    block: int = PAGE,
    vmcoreinfo: bytes = b"OSRELEASE=6.1.0\n",
    notes: bytes = b"",
    split: int = 0,
    share: bool = False,
) -> bytes:
    """A kdump file of whole *pages* by page number; *flags* say what *pack* did; equal ones may *share* bytes."""
    count = max(pages) + 1
    bits = bytearray(-(-count // 8))
    for number in pages:
        bits[number // 8] |= 1 << number % 8
    half = bytes(bits) + bytes(-len(bits) % PAGE)
    blocks = 2 * len(half) // PAGE
    info_at = PAGE + 256
    notes_at = info_at + len(vmcoreinfo)
    header = struct.pack(
        "<8si390s6x16sIiiIIIIIIi",
        b"KDUMP   ",
        version,
        b"Linux",
        b"",
        1,
        block,
        1,
        blocks,
        count,
        len(pages),
        0,
        len(pages),
        0,
        1,
    )
    sub = struct.pack(
        "<QiiQQQQQQQQQQQ",
        0,
        0,
        split,
        0,
        0,
        info_at,
        len(vmcoreinfo),
        notes_at,
        len(notes),
        0,
        0,
        0,
        0,
        count,
    )
    sub_block = sub + bytes(256 - len(sub)) + vmcoreinfo + notes
    descriptors, body = b"", b""
    data_at = 2 * PAGE + 2 * len(half) + 24 * len(pages)
    places: dict[bytes, int] = {}
    for number in sorted(pages):
        packed = pack(pages[number])
        at = places.setdefault(packed, data_at + len(body)) if share else data_at + len(body)
        descriptors += struct.pack("<QIIQ", at, len(packed), flags, 0)
        body += packed if at == data_at + len(body) else b""
    return header.ljust(PAGE, b"\0") + sub_block.ljust(PAGE, b"\0") + half + half + descriptors + body


def flattened(plain: bytes, step: int = 5000) -> bytes:
    """*plain* as records, out of order, its header written twice and wrongly at first."""
    out = struct.pack(">16sqq", b"makedumpfile", 1, 1).ljust(PAGE, b"\0")
    out += struct.pack(">qq", 0, 464) + bytes(464)
    for at in sorted(range(0, len(plain), step), reverse=True):
        part = plain[at : at + step]
        out += struct.pack(">qq", at, len(part)) + part
    return out + struct.pack(">qq", -1, -1)


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """The builders above."""
    return SimpleNamespace(elf_core=elf_core, note=note, lime=lime, kdump=kdump, flattened=flattened)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[bytes], str]:
    """Write bytes to ``guest`` in a folder of the test and return its path."""

    def save(data: bytes) -> str:
        path = tmp_path / "guest"
        path.write_bytes(data)
        return str(path)

    return save


@pytest.fixture
def opened() -> Callable[[], set[str]]:
    """What was opened since the test began, and still is: descriptors and what they lead to.

    What other tests left to be collected may be closed meanwhile, so that a mere count says nothing.
    """
    before = _descriptors()
    return lambda: _descriptors() - before


def _descriptors() -> set[str]:
    found = set()
    for number in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the list itself
            found.add(f"{number.name} {number.readlink()}")
    return found


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Callable[[socket.socket], None]], str]]:
    """Run a function over the first connection to a Unix socket; the result is the socket's path."""
    threads: list[threading.Thread] = []
    with socket.socket(socket.AF_UNIX) as listener:
        path = tmp_path / "socket"
        listener.bind(str(path))
        listener.listen(1)

        def start(script: Callable[[socket.socket], None]) -> str:
            def run() -> None:
                connection, _ = listener.accept()
                # A client that gives up in the middle is what some tests are about.
                with connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    script(connection)

            threads.append(threading.Thread(target=run, daemon=True))
            threads[-1].start()
            return str(path)

        yield start
        for thread in threads:
            thread.join(5)


@pytest.fixture
def listens() -> Callable[[Path], bool]:
    """Whether a program listens at a Unix socket: its file is there a moment before.

    By the kernel's table: who connects only to try it may end a QEMU that has just begun.
    """

    def look(path: Path) -> bool:
        rows = (line.split() for line in Path("/proc/net/unix").read_text().splitlines())
        return any(row[3] == "00010000" and row[7:] == [str(path)] for row in rows)

    return look


@pytest.fixture(scope="session")
def machine_files() -> ModuleType:
    """The writers of what virtual machine monitors save."""
    path = Path(__file__).parent / "machine_files.py"
    spec = importlib.util.spec_from_file_location("machine_files", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
