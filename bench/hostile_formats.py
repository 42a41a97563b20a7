"""Files of every format that are cut, forged and huge: refused in one line, or read as what is left of them.

    python bench/hostile_formats.py [--only WORDS] [--step 1]

Each file is made whole, then cut at each *step*, and each word of its heads is set to what breaks readers: 0, all
ones, signs, sizes beyond the file. Every case is opened and read in a process with 1 GiB of address space. It passes
if it ends with one of the project's errors, in one line, or if it opens; of a file that was cut each page that can
still be read has to be the page that was written. Status 1 where one does not pass.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

TESTS: Final = Path(__file__).parents[1] / "tests" / "memory"
sys.path[:0] = [str(TESTS), str(TESTS / "formats"), str(Path(__file__).parent)]

import machine_files as make  # noqa: E402
import test_avml as avml  # noqa: E402
import test_qemu_stream as streams  # noqa: E402
import test_windows_dump as windows  # noqa: E402

from fivefold.errors import FivefoldError, MemoryReadError  # noqa: E402
from fivefold.memory import open_source  # noqa: E402
from fivefold.units import GIB, MIB, PhysAddr  # noqa: E402

PAGE: Final = 4096
SHARED: Final = Path("/dev/shm")
ROOM: Final = 1 * GIB
MOST_SECONDS: Final = 10.0
CUTS: Final = 120
HEADS: Final = 640
"""Bytes in which each word is forged, and as many before the file's end; further on every seventh up to `FAR`."""
FAR: Final = 3 * PAGE
VALUES: Final = {
    8: (0, 1, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 52) - PAGE, 1 << 62, 1 << 63, (1 << 64) - 1),
    4: (0, 1, 0x7FFF_FFFF, 1 << 31, (1 << 32) - 1),
    2: (0, 0xFFFF),
    1: (0, 0xFF),
}


@dataclass(frozen=True)
class Whole:
    """A source as files; *main* is the one that is opened, *harmed* the one that is cut and forged."""

    name: str
    files: dict[str, bytes]
    main: str
    harmed: str


def wholes() -> Iterator[Whole]:
    """One of each format and each form of it."""
    helpers = conftest()
    pages, rows = make.PAGES, make.runs(make.PAGES)
    notes = make.note(b"QEMU", 0, b"\1\0\0\0" + bytes(436)) + make.note(b"CORE", 1, bytes(336))
    sections, devices = streams.with_cpus()
    stream = sections + streams.described(devices)
    numbered = {pa // PAGE: data for pa, data in pages.items() if pa < GIB}
    kdump = helpers.kdump(numbered, notes=notes)
    singles: dict[str, bytes] = {
        "ELF core": helpers.elf_core(rows, notes),
        "ELF core, extended numbering": helpers.elf_core(rows, notes, extended=True),
        "kdump": kdump,
        "kdump, flattened": helpers.flattened(kdump),
        "LiME": helpers.lime(rows),
        "AVML": avml.avml(rows),
        "Windows, full": windows.full(),
        "Windows, bitmap": windows.bitmap(),
        "QEMU stream": stream,
        "libvirt": streams.libvirt(stream),
        "libvirt, lzop": streams.libvirt(streams.lzop(stream), 4),
        "qcow2": streams.qcow2([("one", stream)]),
        "VirtualBox": make.virtualbox(pages),
        "Xen, HVM": make.xen_core(pages),
        "Xen, PV": make.xen_core(pages, is_pv=True),
        "Hyper-V": make.hyperv(pages),
        "Hyper-V, packed": make.hyperv(pages, is_packed=True),
    }
    for name, data in singles.items():
        yield Whole(name, {"file": data}, "file", "file")
    yield from folders(pages)


def folders(pages: dict[int, bytes]) -> Iterator[Whole]:
    """Formats of several files: each of them is harmed in turn."""
    for way in ("plain", "text", "bytes"):
        files = make.cloud_hypervisor(pages, way=way)
        for harmed in ("state.json", "memory-ranges") if way == "plain" else ("state.json",):
            yield Whole(f"Cloud Hypervisor, {way}, {harmed}", files, ".", harmed)
    for way in ("old", "plain", "flags"):
        files = make.firecracker(pages, way=way)
        for harmed in ("vmstate", "mem") if way == "old" else ("vmstate",):
            yield Whole(f"Firecracker, {way}, {harmed}", files, "vmstate", harmed)
    files = make.vmware(pages)
    for harmed in files:
        yield Whole(f"VMware, {harmed[-4:]}", files, "guest.vmss", harmed)


def conftest() -> Any:
    """The writers of the formats that the tests of memory share."""
    spec = importlib.util.spec_from_file_location("memory_conftest", TESTS / "conftest.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["memory_conftest"] = module
    spec.loader.exec_module(module)
    return module


def harmed(data: bytes, step: int) -> Iterator[tuple[str, bytes]]:
    """The file cut and forged, with what was done to it."""
    lengths = {len(data) * part // CUTS for part in range(0, CUTS, step)} | {len(data) - 1, len(data) - PAGE, 1, 63}
    for length in sorted(lengths & set(range(len(data)))):
        yield f"cut at {length}", data[:length]
    near = [*range(HEADS), *range(HEADS, min(FAR, len(data)), 7), *range(max(len(data) - HEADS, 0), len(data))]
    for size, values in VALUES.items():
        for at in dict.fromkeys(at for at in near[::step] if at % min(size, 4) == 0 and at + size <= len(data)):
            for value in values:
                yield (
                    f"{size} bytes at {at}: {value:#x}",
                    data[:at] + value.to_bytes(size, "little") + data[at + size :],
                )
                if size > 1:
                    yield (
                        f"{size} bytes at {at}, big: {value:#x}",
                        data[:at] + value.to_bytes(size, "big") + data[at + size :],
                    )


def read(path: Path) -> dict[int, bytes]:
    """Every page of the first extents that can be read; the errors of others have to be the project's."""
    found = {}
    with open_source(path, max_copy=64 * MIB, max_unpacked=64 * MIB) as source:
        for extent in source.extents[:16]:
            if not 0 <= extent.start < extent.end <= 1 << 64:
                raise AssertionError(f"an extent of {extent}")
            for at in range(extent.start & -PAGE, min(extent.end, extent.start + 16 * PAGE), PAGE):
                try:
                    found[at] = source.memory.read(PhysAddr(at), PAGE)
                except MemoryReadError as error:
                    one_line(error)
        for cpu in source.cpus[:64]:
            str(cpu)
    return found


def one_line(error: FivefoldError) -> None:
    """Messages that could confuse a terminal or a log."""
    text = str(error)
    if not text or len(text) > 1000 or any(not character.isprintable() for character in text):
        raise AssertionError(f"a message like {text[:300]!r}")


def case(path: Path, what: str, good: dict[int, bytes]) -> str | None:
    """What is wrong with how one case ends."""
    began = time.process_time()
    try:
        found = read(path)
        if what.startswith("cut") and any(data != good.get(at, data) for at, data in found.items()):
            return "pages are others than were written"
        if what.startswith("cut") and found.keys() - good.keys():
            return "pages that were not written"
    except FivefoldError as error:
        try:
            one_line(error)
        except AssertionError as wrong:
            return str(wrong)
    except BaseException:  # noqa: BLE001 - whatever it is, it is what is looked for
        return traceback.format_exc()
    taken = time.process_time() - began
    return f"{taken:.1f} s" if taken > MOST_SECONDS else None


def tried(whole: Whole, step: int, out: io.TextIOBase) -> tuple[int, int]:
    """All cases of one file; how many there were, and how many did not pass."""
    count = wrong = 0
    with tempfile.TemporaryDirectory(dir=SHARED if SHARED.is_dir() else None) as text:
        place = Path(text)
        for name, data in whole.files.items():
            (place / name).write_bytes(data)
        good = read(place / whole.main)
        if not good:
            raise SystemExit(f"{whole.name}: no page can be read of the whole file")
        for what, data in harmed(whole.files[whole.harmed], step):
            (place / whole.harmed).write_bytes(data)
            count += 1
            if (said := case(place / whole.main, what, good)) is not None:
                wrong += 1
                out.write(f"FAILED {whole.name}, {what}: {said}\n")
                out.flush()
    return count, wrong


def child(whole: Whole, step: int) -> bool:
    """Try *whole* in a process of its own; whether all passed."""
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_AS, (ROOM, ROOM))
        began = time.process_time()
        count, wrong = tried(whole, step, sys.stdout)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        print(
            f"{whole.name}: {count} cases, {wrong} wrong; {time.process_time() - began:.0f} s, {peak} MiB", flush=True
        )
        os._exit(min(wrong, 1))
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        print(f"FAILED {whole.name}: ended by signal {os.WTERMSIG(status)}", flush=True)
    return status == 0


def main() -> int:
    """A row for each format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="WORDS", help="formats whose name has these words")
    parser.add_argument("--step", type=int, default=1, help="take one case in so many (default %(default)s: all)")
    asked = parser.parse_args()
    chosen: list[Callable[[], bool]] = []
    chosen = [lambda one=one: child(one, asked.step) for one in wholes() if asked.only in one.name]  # type: ignore[misc]
    passed = [one() for one in chosen]
    print(f"{len(passed)} files, {passed.count(False)} with cases that failed")
    return int(not passed or not all(passed))


if __name__ == "__main__":
    sys.exit(main())
