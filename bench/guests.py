"""Boot any guest, stop it, and hold what is read from it live against its QEMU and against the CPU's rules.

    python bench/guests.py --ready "the guest is ready" -- -M q35 -cpu max -m 256 -kernel K -initrd I
    python bench/guests.py --qemu ~/qemu10 --seconds 10 -- -cpu max -m 128 -kernel memtest86+x64.bin

By QMP and by QEMU's gdb stub: `dump --format info-tlb` must be QEMU's `info tlb`, line by line; and for up to 400 pages
drawn at random, what `walk` grants each privilege must be what the architecture's rules (`arch/access`) allow with the
registers that the CPU has now. Of a guest that is not in long mode both must say so. It is stopped several times
(`--stops`), at other moments. The system and the bases are printed, to be held against the guest's own word.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from fivefold.arch import FETCH, READ, WRITE, Allowed, ControlState, access
from fivefold.errors import FivefoldError
from fivefold.machine.program import find_program
from fivefold.memory.live.qmp_client import QmpClient
from fivefold.survey.space import Space, open_space

PAGES = 400
PATIENCE = 300


def started(asked: argparse.Namespace, folder: Path) -> subprocess.Popen[bytes]:
    """QEMU, with sockets for us and for what is tested in *folder*."""
    program = find_program(["qemu-system-x86_64"], asked.qemu, "FIVEFOLD_QEMU")
    assert program is not None, "there is no QEMU"
    command = [*program.command, "-accel", "tcg", "-display", "none", "-nodefaults", "-no-reboot"]
    if program.is_unpacked:
        command += ["-L", str(program.root / "usr/share/qemu"), "-L", str(program.root / "usr/share/seabios")]
    command += ["-serial", f"file:{folder}/serial", "-gdb", f"unix:{folder}/gdb,server=on,wait=off"]
    for name in ("watch", "qmp"):
        command += ["-qmp", f"unix:{folder}/{name},server=on,wait=off"]
    return subprocess.Popen([*command, *asked.words], stderr=subprocess.PIPE)


def wait(asked: argparse.Namespace, folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the guest has said that it is ready, or so many seconds."""
    until = time.monotonic() + (PATIENCE if asked.ready else asked.seconds)
    serial = folder / "serial"
    while time.monotonic() < until and process.poll() is None:
        time.sleep(0.3)
        if asked.ready and serial.exists() and asked.ready.encode() in serial.read_bytes():
            return
    if asked.ready or process.poll() is not None:
        end = (serial.read_bytes()[-300:] if serial.exists() else b"").decode(errors="replace")
        sys.exit(f"the guest is not ready: {end!a}")


def in_long_mode(registers: str) -> bool:
    """Whether CPU 0 pages by 64-bit tables, by QEMU's `info registers`."""
    efer, cr0 = (re.search(rf"{name}=([0-9a-f]+)", registers) for name in ("EFER", "CR0"))
    assert efer is not None and cr0 is not None
    return bool(int(efer[1], 16) >> 10 & 1 and int(cr0[1], 16) >> 31)


def wrong_lines(theirs: str, source: str) -> Iterator[str]:
    """How `dump --format info-tlb` differs from *theirs*."""
    words = ["dump", source, "--format", "info-tlb", "--all", *(["--freeze"] if source.startswith("gdb:") else [])]
    done = subprocess.run([sys.executable, "-m", "fivefold", *words], capture_output=True, text=True)
    if done.stdout.splitlines() != theirs.splitlines():
        both = set(theirs.splitlines()) ^ set(done.stdout.splitlines())
        yield f"{len(both)} lines of info tlb differ, such as {sorted(both)[:2]}: {done.stderr.strip()[:200]}"


def wrong_rights(space: Space, rng: random.Random) -> Iterator[str]:
    """Pages on which the CPU would do other than what their rights say."""
    cpu = space.source.cpus[0]
    assert cpu.cr0 is not None and cpu.cr3 is not None and cpu.cr4 is not None and cpu.efer is not None
    regions = [region for region in space.regions(repeat_above=0) if region.page]
    for region in rng.sample(regions, min(PAGES, len(regions))):
        rights = space.path(region.start).by_entries
        assert rights is not None
        for ring, granted in ((3, space.controls.user(rights)), (0, space.controls.supervisor(rights))):
            state = ControlState(cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer, cpl=ring)
            seen = (isinstance(access(space.tables, state, region.start, how), Allowed) for how in (READ, WRITE, FETCH))
            if tuple(seen) != granted:
                yield f"{region.start:#x} at CPL {ring}: {granted}"


def look(source: str, registers: str, theirs: str, rng: random.Random) -> str:
    """What comes of it, on one line."""
    if not in_long_mode(registers):
        try:
            with open_space(source, freeze=True) as space:
                return f"WRONG: taken for {space.levels} levels outside long mode"
        except FivefoldError as error:
            return f"refused: {error}"
    wrong = list(wrong_lines(theirs, source))
    if source.startswith("gdb:"):  # a guest goes on when its stub is left: one look is all
        return f"WRONG: {'; '.join(wrong)}" if wrong else "equal"
    with open_space(source) as space:
        rights = list(wrong_rights(space, rng))
        wrong += [f"{len(rights)} rights, such as {rights[0]}"] if rights else []
        bases = space.bases
        places = (bases.page_offset, bases.vmalloc, bases.vmemmap, bases.phys_base)
        told = " ".join("-" if place.value is None else f"{place.value:#x}" for place in places)
        label = f"{space.levels} levels, {theirs.count(chr(10))} lines, {space.system.name.value}; bases {told}"
    return f"WRONG: {'; '.join(wrong)} ({label})" if wrong else f"equal: {label}"


def main() -> int:
    """Run what was asked for; 1 where anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qemu", help="another QEMU, or a folder of unpacked packages")
    parser.add_argument("--ready", metavar="TEXT", help="what the guest says on its serial port when it is up")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to wait otherwise (default %(default)s)")
    parser.add_argument("--stops", type=int, default=2, help="how often (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("words", nargs="+", metavar="-- QEMU'S OPTIONS")
    asked = parser.parse_args()
    rng, failed = random.Random(asked.seed), False
    with tempfile.TemporaryDirectory(prefix="fivefold-guests-") as place:
        folder = Path(place)
        process = started(asked, folder)
        try:
            wait(asked, folder, process)
            monitor = QmpClient(str(folder / "watch"), timeout=60)
            for stop in range(asked.stops):
                monitor.ask("stop")
                registers = monitor.monitor("info registers")
                theirs = monitor.monitor("info tlb").replace("\r", "") if in_long_mode(registers) else ""
                for way in ("qmp", "gdb"):
                    told = look(f"{way}:{folder / way}", registers, theirs, rng)
                    failed = failed or told.startswith("WRONG")
                    print(f"stop {stop} {way}: {told}", flush=True)
                monitor.ask("cont")
                time.sleep(rng.uniform(0.1, 1))
        finally:
            process.kill()
            process.wait()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
