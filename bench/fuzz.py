"""Feed hostile page tables and hostile files to everything that reads them: no crash, no hang, no read outside.

    python bench/fuzz.py --cases 1000000 --seconds 900 --seed 1
    python bench/fuzz.py --kinds dense --cases 300       # up to 256 tables that share each other, whole questions

Page tables lie between pages that cannot be read, so a read outside ends the process. Cases run in children, a few
thousand each: one that dies, hangs, or lets an error out that is not the project's own is told with the seed that
repeats it, and the exit status is 1 then.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import lzma
import mmap
import os
import random
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Final

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "memory"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "memory" / "formats"))

from fivefold.arch import Cpu
from fivefold.errors import FivefoldError
from fivefold.memory import Bank, BankedMemory, CpuState, Source, open_source
from fivefold.survey.audit.audit import audit
from fivefold.survey.diff.diff import diff
from fivefold.survey.find import find_mappings
from fivefold.survey.guest.identify import GivenPaging
from fivefold.survey.guest.roots import find_roots
from fivefold.survey.scan.scan import TableScanner
from fivefold.survey.scan.scan_result import Contiguity, ScanSettings
from fivefold.survey.scan.translator import Translator
from fivefold.survey.space import Space
from fivefold.survey.stats import stats
from fivefold.units import PhysAddr
from hostile_inputs import chains, irregular, sharing, uneven

CHUNKS: Final = {"tables": 1000, "files": 1000, "dense": 10}
"""Cases in one child."""
KINDS: Final = ("tables", "tables", "tables", "files", "dense")
"""In turns. Those of files take longer than those of tables."""
CHUNK_SECONDS: Final = 300
"""A child that takes longer hangs."""
TABLES: Final = 5
FIRST: Final = 0x10_0000
MAX_RANGES: Final = 3_000
EVERY: Final = 250
"""One image in so many is asked everything, which takes a hundred times as long."""
MOST_SECONDS: Final = 30.0
MOST_MEMORY: Final = 2 << 30
GUESTS: Final = Path(__file__).parents[1] / "tests" / "data" / "guests"
HEADERS: Final = 4096
"""Mutated bytes of a file are among the first so many, its end excepted."""


class Tables:
    """Pages for tables in two banks, each between pages that fault."""

    def __init__(self) -> None:
        page = mmap.PAGESIZE
        self.memory = mmap.mmap(-1, (TABLES + 3) * page)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        libc = ctypes.CDLL(None, use_errno=True)
        for guard in (0, 3, TABLES + 2):
            if libc.mprotect(ctypes.c_void_p(base + guard * page), ctypes.c_size_t(page), 0):
                raise SystemExit(f"cannot protect a page: {os.strerror(ctypes.get_errno())}")
        view = memoryview(self.memory)
        self.banks = [
            Bank(FIRST, view[page : 3 * page]),
            Bank(FIRST + 0x10_0000, view[4 * page : (TABLES + 2) * page]),
        ]
        self.frames = [bank.start + at for bank in self.banks for at in range(0, len(bank.data), 4096)]
        self.words = [np.frombuffer(bank.data, "<u8") for bank in self.banks]
        self.scanners = {prefetch: TableScanner(self.banks, prefetch=prefetch) for prefetch in (False, True)}
        self.translators = {
            levels: Translator(self.banks, PhysAddr(FIRST), levels, Cpu(phys_bits=46)) for levels in (4, 5)
        }

    def fill(self, rng: np.random.Generator) -> None:
        """Entries that lead to tables, near them, to large pages, anywhere, or nowhere."""
        near = np.array(
            [*self.frames, FIRST - 4096, FIRST + 0x2000, FIRST + 0x10_3000, 0, 1 << 30, (1 << 52) - 4096], np.uint64
        )
        flags = np.array([0, 1, 3, 7, 0x67, 0x83, 0x1083, 0x183, 1 << 63 | 3, 0x2083, 1 << 47 | 1], np.uint64)
        sparse = rng.random() < 0.7
        for words in self.words:
            words[:] = near[rng.integers(0, len(near), len(words))] | flags[rng.integers(0, len(flags), len(words))]
            if sparse:
                words[rng.random(len(words)) < 0.98] = 0
            words[rng.integers(0, len(words), 8)] = rng.integers(0, 1 << 64, 8, dtype=np.uint64)

    def case(self, rng: np.random.Generator, number: int) -> None:
        """One image, scanned and translated; some are asked everything."""
        self.fill(rng)
        levels = int(rng.integers(4, 6))
        settings = ScanSettings(
            contiguity=Contiguity(int(rng.integers(0, 3))), repeat_above=[None, 0, 5, 64][int(rng.integers(0, 4))]
        )
        scanner = self.scanners[bool(rng.integers(0, 2))]
        attempt(lambda: scanner.scan(PhysAddr(FIRST), levels, settings, max_ranges=MAX_RANGES))
        self.translators[levels].batch(rng.integers(0, 1 << 64, 100, dtype=np.uint64))
        if number % EVERY == 0:
            self.questions(levels)

    def questions(self, levels: int) -> None:
        """Everything that is asked of a space."""
        cpu = CpuState("fuzz", cr0=0x8000_0033, cr3=FIRST, cr4=0x20 | (0x1000 if levels == 5 else 0))
        source = Source(BankedMemory(self.banks, "fuzz"), "fuzz", (cpu,))
        space = Space(source)
        for question in (audit, stats, lambda asked: diff(asked, asked), lambda asked: find_roots(asked.source)):
            attempt(lambda question=question: question(space))


class Dense:
    """Many tables that share each other, regularly or not: what grows with their square or faster shows here."""

    def case(self, rng: np.random.Generator, number: int) -> None:
        """One question about one or two spaces, within the memory and the time of `hostile.py`."""
        spaces = [self.space(rng) for _ in range(2)]
        questions: list[Any] = [
            lambda: audit(spaces[0]),
            lambda: stats(spaces[0]),
            lambda: diff(spaces[0], spaces[1]),
            lambda: find_roots(spaces[0].source),
            lambda: list(spaces[0].regions(repeat_above=16)),
            lambda: find_mappings(spaces[:1], [range(0x1000, 0x2000)]),
        ]
        chosen = int(rng.integers(0, len(questions)))
        began = time.process_time()
        attempt(questions[chosen])
        seconds, used = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        if seconds > MOST_SECONDS or used > MOST_MEMORY:
            raise ValueError(f"question {chosen} took {seconds:.0f} s and {used >> 20} MiB")

    def space(self, rng: np.random.Generator) -> Space:
        """A space of any of these structures and sizes."""
        count = int(2 ** rng.uniform(1, 8))
        makers: list[Any] = [sharing, uneven, chains, lambda n: irregular(n, int(rng.integers(0, 1 << 30)))]
        tables = makers[int(rng.integers(0, len(makers)))](count)
        five = 0x1000 * int(rng.integers(0, 2))
        cpu = CpuState("fuzz", cr0=0x8005_0033, cr3=0, cr4=0x20 | five)
        memory = BankedMemory([Bank(0, memoryview(tables.tobytes()))], "dense")
        # Tables that are drawn at random may look like either mode.
        return Space(Source(memory, "dense", (cpu,)), GivenPaging(levels=5 if five else 4, force=True))


def saved_machines() -> list[bytes]:
    """What virtual machine monitors save, as the tests make it."""
    import machine_files as make
    import test_qemu_stream as streams

    sections, devices = streams.with_cpus()
    whole = sections + streams.described(devices)
    return [
        make.virtualbox(make.PAGES),
        make.xen_core(make.PAGES),
        make.xen_core(make.PAGES, is_pv=True),
        make.hyperv(make.PAGES)[: 1 << 17],
        make.hyperv({0: make.PAGES[0x1000]}, is_packed=True),
        make.firecracker(make.PAGES)["vmstate"],
        whole,
        streams.libvirt(whole),
        streams.libvirt(streams.lzop(whole), 4),
        streams.qcow2([("one", whole)]),
    ]


class Files:
    """Files that begin like dumps."""

    def __init__(self) -> None:
        # In memory: truncating a file on disk takes longer than reading it.
        self.fd = os.memfd_create("hostile")
        self.path = f"/proc/self/fd/{self.fd}"
        self.seeds = [lzma.decompress(path.read_bytes())[: 1 << 17] for path in sorted(GUESTS.glob("*.elf.xz"))]
        self.seeds += saved_machines()
        self.magics = [
            b"EMiL\1\0\0\0",
            b"KDUMP   \6\0\0\0",
            b"makedumpfile\0\0\0\0",
            b"\x1f\x8b\x08",
            b"\xfd7zXZ\0",
            b"\x7fELF\2\1\1",
            b"QEVM\0\0\0\3",
            b"QFI\xfb\0\0\0\3",
            b"\x14\x20\x28\x01",
            b"\0\0\x64\x86\x84\x19\x10\x07",
            b"LibvirtQemudSave\2\0\0\0",
            b"PAGEDU64",
            b"\xd2\xbe\xd2\xbe",
            b"AVML\2\0\0\0",
        ]
        if not self.seeds:
            raise SystemExit(f"no captures in {GUESTS}")

    def case(self, rng: np.random.Generator, number: int) -> None:
        """One file, opened and read."""
        dice = random.Random(int(rng.integers(0, 1 << 62)))
        data = bytearray(dice.choice(self.seeds)[: dice.choice((512, 8192, 1 << 17))])
        if number % 4 == 0:
            data[:64] = (dice.choice(self.magics) + dice.randbytes(64))[:64]
        for _ in range(dice.randrange(1, 6)):
            at, size = dice.randrange(min(HEADERS, len(data) - 8)), dice.choice((1, 2, 4, 8))
            value = dice.choice((0, 1, 0xFFFF, 1 << 31, 1 << 63, (1 << 64) - 1, dice.getrandbits(64)))
            data[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        data = data[: dice.choice((len(data), dice.randrange(len(data))))]
        os.ftruncate(self.fd, len(data))
        os.pwrite(self.fd, data, 0)
        attempt(self.read)

    def read(self) -> None:
        """Open it, and read the ends of what it says it has."""
        with open_source(self.path, max_copy=1 << 20, max_unpacked=1 << 20) as source:
            for extent in source.extents[:8]:
                attempt(lambda extent=extent: source.memory.read(PhysAddr(extent.end - 1), 1))


def attempt(question: Any) -> None:
    """Ask; the project's own errors are answers, as long as they are one line."""
    try:
        question()
    except FivefoldError as error:
        if "\n" in str(error):
            raise ValueError(f"an error of several lines: {error!r}") from error


def child(kind: str, seed: int, first: int, count: int) -> int:
    """Run a chunk; the status that its process ends with."""
    subject = {"tables": Tables, "files": Files, "dense": Dense}[kind]()
    for number in range(first, first + count):
        try:
            subject.case(np.random.default_rng([seed, number]), number)
        except BaseException:  # noqa: BLE001 - whatever it is, it is what is looked for
            print(f"{kind} seed {seed} case {number}:\n{traceback.format_exc()}", file=sys.stderr)
            return 1
    return 0


def chunk(kind: str, seed: int, first: int, count: int) -> str | None:
    """Run a chunk in a child; what went wrong, or None."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(CHUNK_SECONDS)
        os._exit(child(kind, seed, first, count))
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGALRM:
        return "hangs"
    return None if code == 0 else f"ends with {signal.Signals(-code).name if code < 0 else code}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1_000_000, help="how many (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=900, help="stop after this long (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", choices=CHUNKS, default=KINDS, help="in turns (default: all)")
    asked = parser.parse_args()
    began, done, failures = time.monotonic(), 0, 0
    kinds = itertools.cycle(asked.kinds)
    while done < asked.cases and time.monotonic() - began < asked.seconds:
        kind = next(kinds)
        count = min(CHUNKS[kind], asked.cases - done)
        wrong = chunk(kind, asked.seed, done, count)
        if wrong:
            failures += 1
            print(f"FAILED {kind}: seed {asked.seed}, cases {done} to {done + count}: {wrong}", flush=True)
        done += count
    seconds = time.monotonic() - began
    print(f"{done} cases in {seconds:.0f} s, {done / seconds:.0f} a second, {failures} chunks failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
