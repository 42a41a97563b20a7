"""Logs as they come: cut, mixed, foreign, packed, huge, or no logs at all."""

from __future__ import annotations

import gzip
import io
import lzma
import random
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from fivefold.errors import FormatError, MachineError
from fivefold.explain import Explanation, explain

NAME = "missing_pml5e.log"
EXPECTED = (
    "expected a report of an x86-64 exception by Linux, QEMU (-d int, `info registers`), KVM, Bochs, Xen, FreeBSD, "
    "UEFI, gdb, crash or Windows"
)


@pytest.fixture
def log(data: Path) -> bytes:
    return (data / NAME).read_bytes()


def told_of(raw: bytes) -> Explanation:
    return explain(io.BytesIO(raw))


def accused(told: Explanation) -> tuple[str, int | None, str]:
    return told.cause.rule, told.cause.address, told.outcome


TRUE = ("not-present", 0xFF11_0000_0000_0000, "triple-fault")


def test_windows_line_ends(log: bytes) -> None:
    assert accused(told_of(log.replace(b"\n", b"\r\n"))) == TRUE


def test_escape_codes(log: bytes) -> None:
    coloured = log.replace(b"check_exception", b"\x1b[31mcheck_\x1b[0;1mexception\x1b[K").replace(
        b"CR4=", b"\x1b[1mCR4="
    )
    told = told_of(coloured)
    assert accused(told) == TRUE
    assert told.mode == "la57"


def test_utf16_of_a_windows_shell(log: bytes) -> None:
    assert accused(told_of(log.decode().encode("utf-16"))) == TRUE


def test_between_the_lines_of_a_console(log: bytes) -> None:
    lines = log.splitlines(keepends=True)
    mixed = b"".join(b"[    0.0] console: all is well\n" + line for line in lines)
    told = told_of(mixed)
    assert accused(told) == TRUE
    assert told.mode == "la57"


def test_behind_a_time_stamp(log: bytes) -> None:
    stamped = b"".join(b"12:00:01.5 guest| " + line for line in log.splitlines(keepends=True))
    told = told_of(stamped)
    assert accused(told) == TRUE
    assert told.exceptions[0].raised.rsp == 0xFFFF_FFFF_8009_0000


def test_two_cpus_at_once(log: bytes) -> None:
    """Another CPU takes timer interrupts and a page fault that is handled, in the middle of everything."""
    other = (
        b"check_exception old: 0xffffffff new 0xe\n"
        b"     7: v=0e e=0004 i=0 cpl=3 IP=0033:0000000000401000 pc=0000000000401000 "
        b"SP=002b:00007ffd00001000 CR2=0000000000605000\n"
        b"     8: v=20 e=0000 i=0 cpl=3 IP=0033:0000000000401004 pc=0000000000401004 "
        b"SP=002b:00007ffd00001000 env->regs[R_EAX]=0000000000000001\n"
    )
    head, mark, tail = log.partition(b"check_exception old: 0xe new 0xd")
    assert accused(told_of(head + other + mark + tail)) == TRUE


def test_the_first_of_many_triple_faults(log: bytes) -> None:
    later = log.replace(b"ff11000000000000", b"ff22000000000000")
    told = told_of(log + later + later)
    assert accused(told) == TRUE
    assert told.remarks == ("3 triple faults in the log; this is the first",)


def test_begins_in_the_middle(data: Path) -> None:
    raw = (data / "thread-2017-kasan-efi.log").read_bytes()
    told = told_of(raw[raw.index(b"check_exception old: 0xe") :])
    assert accused(told) == ("stack", 0xFFFF_FFFF_7FFF_FFF8, "triple-fault")
    assert "the source begins in the middle: what was raised first is not in it" in told.unknown


def test_ends_anywhere(log: bytes) -> None:
    """Every cut is explained or refused; none goes wrong, none claims more than the whole log does."""
    start = log.index(b"check_exception") - 200
    for end in range(start, len(log), 97):
        try:
            told = told_of(log[:end])
        except FormatError:
            assert end < start + 300
            continue
        assert told.cause.rule in ("not-present", "unknown"), end
        assert told.outcome != "triple-fault" or log[:end].rstrip().endswith(b"Triple fault")


def test_interrupts_before_do_not_count(log: bytes) -> None:
    interrupt = (
        b"Servicing hardware INT=0x20\n     0: v=20 e=0000 i=0 cpl=0 IP=0008:ffffffff80000110 "
        b"pc=ffffffff80000110 SP=0010:ffffffff80090000 env->regs[R_EAX]=0000000000000000\n"
    )
    head, mark, tail = log.partition(b"check_exception old: 0xffffffff")
    told = told_of(head + interrupt * 3 + mark + tail)
    assert accused(told) == TRUE
    assert [one.raised.vector for one in told.exceptions] == [14, 13, 13]


def test_runaway_recursion_is_counted() -> None:
    block = (
        "check_exception old: 0xffffffff new 0xe\n"
        "     {n}: v=0e e=0000 i=0 cpl=0 IP=0010:ffffffff81000100 pc=ffffffff81000100 "
        "SP=0018:{sp:016x} CR2=fffffbfff07e3a17\nCR0=80050033 CR2=fffffbfff07e3a17 CR3=0000000009c58000 CR4=000010a0\n"
    )
    text = "".join(block.format(n=n, sp=0xFFFF_FFFF_8000_4000 - 48 * n) for n in range(300))
    told = told_of(text.encode())
    assert told.cause.address == 0xFFFF_FBFF_F07E_3A17
    assert "the same exception was raised 300 times in a row, each lower on the stack" in " ".join(told.cause.evidence)


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress], ids=["gz", "xz"])
def test_packed(log: bytes, tmp_path: Path, pack: object) -> None:
    assert callable(pack)
    path = tmp_path / "log.packed"
    path.write_bytes(pack(log))
    assert accused(explain(path)) == TRUE


class Endless(io.RawIOBase):
    """A log of *size* bytes that is made while it is read."""

    def __init__(self, head: bytes, block: bytes, size: int, tail: bytes) -> None:
        self._parts = self._make(head, block, size, tail)
        self._left = b""

    @staticmethod
    def _make(head: bytes, block: bytes, size: int, tail: bytes) -> Iterator[bytes]:
        yield head
        for number in range(size // len(block)):
            yield block.replace(b"NNNN", b"%04x" % (number & 0xFFFF))
        yield tail

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while not self._left:
            part = next(self._parts, None)
            if part is None:
                return 0
            self._left = part
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


def test_huge_logs_take_bounded_memory(log: bytes) -> None:
    start = log.index(b"check_exception")
    # A page fault that is handled, at another address each time, with its registers.
    block = log[start : log.index(b"check_exception old: 0xe")].replace(b"ff11000000000000", b"00007fff0000NNNN")
    stream = Endless(log[:start], block, 4 << 20, log[start:])
    tracemalloc.start()
    try:
        told = explain(io.BufferedReader(stream))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert accused(told) == TRUE
    assert peak < 16 << 20


def test_a_line_without_an_end() -> None:
    with pytest.raises(FormatError, match="no exception and no registers"):
        explain(io.BufferedReader(Endless(b"x", b"a" * 4096, 3 << 20, b"")))


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "the log is empty"),
        (b"\n\n  \n", "the log holds no exception and no registers"),
        (b"Dear all,\nthis is a letter. BUG: none.\n", "the log holds no exception and no registers"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "the log is binary data, not a log"),
        (b"\xff\xf8\x89\x01\x02 \0 text", "the log is binary data, not a log"),
        (b"check_exception old: what new", "the log holds no exception and no registers"),
    ],
    ids=["empty", "blank", "letter", "picture", "bytes", "garbled"],
)
def test_refused_with_one_line(raw: bytes, words: str) -> None:
    with pytest.raises(FormatError) as caught:
        told_of(raw)
    assert str(caught.value) == f"{words}; {EXPECTED}"


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"^cannot read .*nowhere: No such file or directory$"):
        explain(tmp_path / "nowhere")
    with pytest.raises(MachineError, match=r"^cannot read .*: Is a directory$"):
        explain(tmp_path)
    broken = tmp_path / "broken.xz"
    broken.write_bytes(lzma.compress(b"check_exception" * 100)[:-30])
    with pytest.raises(MachineError, match=r"^cannot read .*broken.xz: "):
        explain(broken)


def test_broken_text_is_explained_or_refused(data: Path) -> None:
    """A log with bytes changed, lost and mixed in is never more than badly known."""
    chance = random.Random(57)
    raw = b"".join((data / name).read_bytes()[-5000:] for name in ("idt_unmapped.log", "thread-2017-kasan-efi.log"))
    for _ in range(150):
        broken = bytearray(raw)
        for _ in range(chance.choice((1, 5, 50))):
            at = chance.randrange(len(broken))
            if chance.random() < 0.5:
                broken[at] = chance.choice(b"0123456789abcdef <>=#\x1b")
            else:
                del broken[at : at + chance.randrange(300)]
        try:
            told = told_of(bytes(broken))
        except FormatError:
            continue
        assert told.to_json()["schema"] == "fivefold.explain/1"


def write_long(path: Path, tail: bytes, size: int = 6 << 20) -> None:
    """A long log of page faults that were handled, and *tail* in its middle."""
    block = (
        b"check_exception old: 0xffffffff new 0xe\n     7: v=0e e=0006 i=0 cpl=3 IP=0033:0000000000401000 "
        b"pc=0000000000401000 SP=002b:00007ffd00001000 CR2=0000000000605000\n"
    )
    half = block * (size // 2 // len(block))
    path.write_bytes(half + tail + half)


def test_a_long_log_is_searched_for_its_fatal_exception(log: bytes, tmp_path: Path) -> None:
    path = tmp_path / "long.log"
    write_long(path, log[log.index(b"check_exception") :])
    told = explain(path)
    assert accused(told) == TRUE
    assert told.mode == "la57"


def test_a_long_log_without_one_is_read_for_its_last_record(tmp_path: Path) -> None:
    path = tmp_path / "long.log"
    write_long(path, b"")
    told = explain(path)
    assert (told.cause.rule, told.cause.address, told.outcome) == ("not-present", 0x605000, "unknown")


def test_an_oops_in_a_long_log(tmp_path: Path) -> None:
    path = tmp_path / "long.log"
    oops = (
        b"BUG: unable to handle page fault for address: ffffc90001a42000\n#PF: error_code(0x0000) - not-present page\n"
        b"PGD 100000067 P4D 100000067 PUD 1001d5067 PMD 0\nOops: 0000 [#1] SMP NOPTI\n"
    )
    noise = b"[    1.000000] usb 1-1: new device, and nothing else to say about it\n" * 60000
    path.write_bytes(noise + oops + noise)
    told = explain(path)
    assert (told.cause.rule, told.cause.address, told.dialect) == ("not-present", 0xFFFFC90001A42000, "Linux oops")
    with path.open("rb") as file, gzip.open(tmp_path / "long.log.gz", "wb", 1) as packed:
        packed.write(file.read())
    assert explain(tmp_path / "long.log.gz").cause == told.cause


def test_an_oops_in_a_long_log_that_ends_with_records(tmp_path: Path) -> None:
    """Three parts are read, which do not touch: the head, the oops and the last records."""
    path = tmp_path / "long.log"
    oops = (
        b"BUG: unable to handle page fault for address: ffffc90001a42000\n#PF: error_code(0x0000) - not-present page\n"
        b"PGD 100000067 P4D 100000067 PUD 1001d5067 PMD 0\nOops: 0000 [#1] SMP NOPTI\n"
    )
    noise = b"[    1.000000] usb 1-1: new device, and nothing else to say about it\n" * 20000
    path.write_bytes(noise + oops + noise + b"RAX=0000000000000000 RBX=0000000000000000\n")
    told = explain(path)
    assert (told.cause.address, told.dialect) == (0xFFFFC90001A42000, "Linux oops")


def test_words_about_a_triple_fault_are_none(log: bytes, tmp_path: Path) -> None:
    path = tmp_path / "long.log"
    chat = b"the developer says that a triple fault: it happens\n" * 60000
    path.write_bytes(chat + log[log.index(b"check_exception") :] + chat)
    assert accused(explain(path)) == TRUE


def test_a_log_that_grows_is_read_to_the_size_that_it_had(tmp_path: Path) -> None:
    """The writer never ends; what it writes after the log was opened is not waited for."""
    path = tmp_path / "growing.log"
    write_long(path, b"", 3 << 20)
    progress: list[tuple[int, int | None]] = []
    size = path.stat().st_size
    writer = path.open("ab")

    def grow(done: int, total: int | None) -> None:
        progress.append((done, total))
        writer.write(b"more\n" * 100000)
        writer.flush()

    try:
        explain(path, progress=grow)
    finally:
        writer.close()
    assert max(done for done, _ in progress) == size


def test_following_ends_with_the_first_fatal_exception(log: bytes, tmp_path: Path) -> None:
    path = tmp_path / "growing.log"
    start = log.index(b"check_exception")
    path.write_bytes(log[:start])

    def grow() -> None:
        with path.open("ab") as file:
            for at in range(start, len(log), 4096):
                file.write(log[at : at + 4096])
                file.flush()
                time.sleep(0.01)

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        assert accused(explain(path, follow=True)) == TRUE
    finally:
        writer.join()
