"""Boot a Linux and hold the names that are read from its memory against its own /proc/kallsyms and ps.

    python bench/names.py FOLDER …                  # each a kernel with modules, unpacked by `.ci/newer-guest FOLDER`
    python bench/names.py FOLDER --kernel bzImage   # another kernel with FOLDER's busybox: one without BTF

Each is booted with four and with five levels, KASLR on, in QEMU under TCG; with `--uefi OVMF.fd` by firmware, which
leaves Linux an `efi_mm`. The guest writes what it knows of itself on a serial line and is stopped. Names come from its
memory alone, live and from a copy as a raw image. Status 1 where anything differs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from fivefold.machine.child import Child
from fivefold.memory.live.qmp_client import QmpClient
from fivefold.survey.space import Space, open_space
from fivefold.units import PAGE

TESTS: Final = Path(__file__).parents[1] / "tests"
MAIN: Final = "from fivefold.cli.main import main; main()"
CPUS: Final = {5: "qemu64,+la57", 4: "qemu64"}
LINKED: Final = 0xFFFF_FFFF_8100_0000
PATIENCE: Final = 900
PAGES: Final = 20
INIT: Final = b"""#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t devtmpfs dev /dev
$b insmod /dummy.ko 2>/dev/null
( exec -a alpha $b sleep 9998 ) &
$b sleep 9997 &
$b stty raw -F /dev/ttyS1
$b cat /proc/kallsyms > /dev/ttyS1
echo === > /dev/ttyS1
for stat in /proc/[0-9]*/stat; do read -r line < $stat && echo "$line"; done > /dev/ttyS1
echo === > /dev/ttyS1
echo the guest is ready
exec $b sleep 9999
"""
_SYMBOL: Final = re.compile(r"^([0-9a-f]{16}) (\S) (\S+)(?:\t\[(\S+)\])?$", re.MULTILINE)
_STAT: Final = re.compile(r"^(\d+) \((.*)\) \S (?:-?\d+ ){5}(\d+) ", re.MULTILINE)
_WORKER: Final = re.compile(r"(kworker/u?\d+:\d+H?)([-+].*)?")
_THREAD: Final = 0x20_0000


@dataclass(frozen=True)
class Told:
    """What the guest says: symbols as (kind, name, module) by address, and name and whether a kernel thread by pid."""

    symbols: Mapping[int, set[tuple[str, str, str | None]]]
    processes: Mapping[int, tuple[str, bool]]

    @classmethod
    def read(cls, text: str) -> Told:
        """From the serial line's text."""
        kallsyms, stats = text.replace("\r", "").split("===")[:2]
        symbols: dict[int, set[tuple[str, str, str | None]]] = defaultdict(set)
        for address, kind, name, module in _SYMBOL.findall(kallsyms):
            if int(address, 16) >= LINKED - 0x100_0000:
                symbols[int(address, 16)].add((kind, name, module or None))
        return cls(symbols, {int(p): (name, bool(int(f) & _THREAD)) for p, name, f in _STAT.findall(stats)})

    def best(self, at: int) -> str:
        """The name that is to be given: a global one first, then by name; a section's mark last."""
        rows = [
            (bool(_SECTION.fullmatch(name)), not kind.isupper(), name, module)
            for kind, name, module in self.symbols[at]
        ]
        _, _, name, module = min(rows, key=lambda row: row[:3])
        return name + (f" [{module}]" if module else "")


_SECTION: Final = re.compile(r"_\w*text|_\w*text_(start|end|begin)|_sdata|_edata|_end|__brk_end|_brk_end")


@dataclass
class Asked:
    """What came of one guest: rows as they are printed, and how many differ."""

    name: str
    wrong: int = 0

    def row(self, what: str, told: str, good: bool) -> None:
        """Print one."""
        self.wrong += not good
        print(f"{self.name}  {'same  ' if good else 'DIFFER'}  {what}: {told}", flush=True)


def live_tests() -> Any:
    """The live tests' way to find a kernel and to write an initrd."""
    spec = importlib.util.spec_from_file_location("live_guest", TESTS / "live" / "conftest.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["live_guest"] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def booted(
    kernel: Path, initrd: Path, place: Path, levels: int, firmware: Path | None
) -> Iterator[tuple[str, Path, Told]]:
    """A guest that stands still: its QMP socket, the file with its memory, what it told."""
    ram, socket = place / "ram", place / "qmp"
    words = ["qemu-system-x86_64", "-accel", "tcg", "-M", "q35,memory-backend=ram", "-cpu", CPUS[levels], "-m", "512"]
    words += ["-object", f"memory-backend-file,id=ram,size=512M,mem-path={ram},share=on", "-kernel", str(kernel)]
    words += ["-initrd", str(initrd), "-append", "console=ttyS0 quiet pti=on", "-display", "none", "-no-reboot"]
    words += ["-nodefaults", "-serial", f"file:{place / 'serial'}", "-serial", f"file:{place / 'told'}"]
    words += ["-qmp", f"unix:{socket},server=on,wait=off", *(["-bios", str(firmware)] if firmware else [])]
    child = Child(words, ())
    try:
        until = time.monotonic() + PATIENCE
        while b"the guest is ready" not in ((place / "serial").read_bytes() if (place / "serial").exists() else b""):
            if child.is_gone or time.monotonic() > until:
                raise SystemExit(f"the guest did not come up: {(place / 'serial').read_bytes()[-400:]!a}")
            time.sleep(0.2)
        stop_in_kernel(socket)
        yield str(socket), ram, Told.read((place / "told").read_text())
    finally:
        child.end()


def stop_in_kernel(socket: Path) -> None:
    """Stop it while its kernel's own root is loaded, which page-table isolation takes away from user mode."""
    monitor = QmpClient(str(socket), timeout=60)
    while True:
        monitor.ask("stop")
        cr3 = re.search(r"CR3=([0-9a-f]{16})", monitor.monitor("info registers"))
        if cr3 is not None and not int(cr3[1], 16) & 1 << 12:
            return monitor.close()
        monitor.ask("cont")
        time.sleep(0.05)


def fivefold(*words: object) -> subprocess.CompletedProcess[str]:
    """Run a command."""
    return subprocess.run([sys.executable, "-c", MAIN, *map(str, words)], capture_output=True, text=True, check=False)


def _without_exports(
    symbols: Mapping[int, set[tuple[str, str, str | None]]],
) -> dict[int, set[tuple[str, str, str | None]]]:
    """A module's letter says by its case whether it is exported, one of the kernel's own whether it is global."""
    rows = {at: {(k.lower() if m else k, n, m) for k, n, m in found} for at, found in symbols.items()}
    return {at: found for at, found in rows.items() if found}


def hold_symbols(asked: Asked, how: str, space: Space, told: Told, modules: bool) -> None:
    """All names, those on sampled pages of text, and which of several is given."""
    ours: dict[int, set[tuple[str, str, str | None]]] = defaultdict(set)
    for span in space.symbols.spans:
        for one in span:
            ours[one.address].add((one.kind, one.name, one.module))
    own = told.symbols if modules else {at: {row for row in rows if not row[2]} for at, rows in told.symbols.items()}
    text = {at: {row for row in rows if row[0] in "tTwW"} for at, rows in own.items()}
    text = {at: rows for at, rows in text.items() if rows}
    pages = random.Random(space.levels).sample(sorted({at & -PAGE for at in text}), PAGES)
    here = [at for at in text if at & -PAGE in pages]
    also = [at for at in ours if at & -PAGE in pages and any(kind in "tTwW" for kind, _, _ in ours[at])]
    wrong = sum(text[at] != {row for row in ours[at] if row[0] in "tTwW"} for at in here) + len(set(also) - set(here))
    wrong += sum(space.symbols.at(at) != told.best(at) for at in here)
    asked.row(f"text on {PAGES} pages, {how}", f"{len(here)} addresses, {wrong} differ", not wrong and bool(here))
    rows, ours = _without_exports(own), _without_exports(ours)
    wrong = sum(rows.get(at) != ours.get(at) for at in rows.keys() | ours.keys())
    names = {module for found in ours.values() for _, _, module in found if module}
    differ = [(hex(at), rows.get(at), ours.get(at)) for at in rows.keys() | ours.keys() if rows.get(at) != ours.get(at)]
    told_of = f"{len(rows)} addresses, {wrong} differ {differ[:4] or ''}; modules {', '.join(names) or 'none'}"
    asked.row(f"all symbols, {how}", told_of, not wrong)


def _same_worker(one: tuple[str, bool], other: tuple[str, bool]) -> bool:
    parts = [_WORKER.fullmatch(name) for name, _ in (one, other)]
    return one[1] == other[1] and None not in parts and len({part[1] for part in parts if part}) == 1


def hold_processes(asked: Asked, told: Told, found: dict[str, Any]) -> None:
    """Pids and names, kernel threads, and each root that is said to be a process'."""
    ours = {one["pid"]: (one["name"], one["kernel_thread"]) for one in found["processes"]}
    # The first process becomes busybox' sleep after it has told. Workers come and go, and do other work.
    theirs = {**told.processes, 1: ("busybox", False)}
    both = [(pid, ours.get(pid, ("", False)), theirs.get(pid, ("", False))) for pid in ours.keys() | theirs.keys()]
    moved = [pid for pid, mine, its in both if mine != its and _WORKER.fullmatch(mine[0] or its[0])]
    moved = [pid for pid, mine, its in both if pid in moved and (not mine[0] or not its[0] or _same_worker(mine, its))]
    wrong = [pid for pid, mine, its in both if mine != its and pid not in moved]
    listed = {one["pid"] for root in found["roots"] for one in root["processes"] if not one.get("borrowed")}
    unlisted = [pid for pid, (_, kernel) in ours.items() if not kernel and pid not in listed]
    more = f"; {len(moved)} workers came, went or took other work" if moved else ""
    differ = [(pid, ours.get(pid), theirs.get(pid)) for pid in wrong] or ""
    told_of = f"{len(ours)}, {len(wrong)} differ {differ}; {len(unlisted)} without a root of theirs{more}"
    asked.row("processes, from a raw image", told_of, not wrong and not unlisted)
    labels = sorted({root["label"] for root in found["roots"] if root["label"]} - {"has a user half"})
    asked.row("labels", "; ".join(labels), "init_mm" in labels)


def hold_explain(asked: Asked, socket: str, place: Path, told: Told) -> None:
    """The live guest without a file, and a log of its registers with one: the function of RIP, and each frame."""
    monitor = QmpClient(socket, timeout=60)
    registers = monitor.monitor("info registers")
    monitor.close()
    rip = int(cast(re.Match[str], re.search(r"RIP=([0-9a-f]{16})", registers))[1], 16)
    function = told.best(max(at for at in told.symbols if at <= rip))
    done = fivefold("explain", f"qmp:{socket}", "--json")
    said = " ".join(json.loads(done.stdout)["remarks"])
    here = re.search(r"is at RIP 0x([0-9a-f]+), in ([^;]+?)\+", said)
    asked.row(
        "explain of the live guest, RIP", function, here is not None and here[2] == function and int(here[1], 16) == rip
    )
    frames = re.search(r"on the stack of CPU 0, behind calls: ([^;]*)", said)
    names = [] if frames is None else [one.partition("+")[0] for one in frames[1].split(", ")]
    known = {name for rows in told.symbols.values() for _, name, _ in rows}
    asked.row("explain of the live guest, frames", ", ".join(names), bool(names) and set(names) <= known)
    lines = [
        f"{at:016x} {kind} {name}" + (f"\t[{m}]" if m else "")
        for at, rows in told.symbols.items()
        for kind, name, m in rows
    ]
    (place / "kallsyms").write_text("\n".join(lines) + "\n")
    (place / "log").write_text(oops(rip, sorted(told.symbols)[100:8000:999]))
    done = fivefold("explain", place / "log", "--symbols", place / "kallsyms")
    wanted = {
        told.best(at) + "+0x4" if at + 4 not in told.symbols else told.best(at + 4)
        for at in sorted(told.symbols)[100:8000:999]
    }
    missing = [name for name in {function, *wanted} if name not in done.stdout]
    asked.row("explain of a log with --symbols", f"RIP and {len(wanted)} frames, {len(missing)} unnamed", not missing)


def oops(rip: int, frames: list[int]) -> str:
    """A report by a kernel that names nothing."""
    rows = [
        "BUG: unable to handle page fault for address: 0000000000000010",
        "#PF: supervisor read access in kernel mode",
    ]
    rows += ["#PF: error_code(0x0000) - not-present page", "Oops: 0000 [#1] PREEMPT SMP", f"RIP: 0010:0x{rip:x}"]
    rows += [
        "RSP: 0018:ffffc90000013e40 EFLAGS: 00010246",
        "CR2: 0000000000000010 CR3: 0000000002a0a000 CR4: 00000000000006f0",
    ]
    rows += ["Call Trace:", " <TASK>", *(f" 0x{at + 4:x}" for at in frames), " </TASK>", "Kernel Offset: disabled"]
    return "\n".join(f"[    1.{number:06}] {row}" for number, row in enumerate(rows)) + "\n"


def guest(asked: Asked, socket: str, ram: Path, told: Told, place: Path) -> None:
    """All rows of one."""
    start = min(at for at, rows in told.symbols.items() if any(name == "_stext" for _, name, _ in rows))
    asked.row("KASLR", f"text moved by {start - LINKED:#x}", start != LINKED)
    with open_space(f"qmp:{socket}") as space:
        btf = space.names.btf is not None
        hold_symbols(asked, "live", space, told, modules=btf)
    hold_explain(asked, socket, place, told)
    found = json.loads(fivefold("roots", ram, "--json").stdout)
    root = next(one["root"] for one in found["roots"] if one["confidence"] == "high" and one["half"] != "user")
    with open_space(str(ram), cr3=int(root, 16)) as space:
        hold_symbols(asked, "from a raw image", space, told, modules=btf)
    if btf:
        hold_processes(asked, told, found)
        return
    said = found["processes_missing"] or found["processes_known_from"] or ""
    asked.row("without BTF", f"{len(found['processes'])} processes: {said}", not found["processes"] and "BTF" in said)


def main() -> int:
    """Rows of each guest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--kernel", type=Path)
    parser.add_argument("--uefi", type=Path)
    parser.add_argument("--levels", type=int, choices=(4, 5), action="append")
    options = parser.parse_args()
    live = live_tests()
    wrong = 0
    for folder in options.folders:
        package = live._unpacked(folder)
        if package is None:
            parser.error(
                f"{folder}: expected boot/vmlinuz-*, bin/busybox and the module dummy, as .ci/newer-guest makes"
            )
        kernel = options.kernel or package.kernel
        for levels in options.levels or (4, 5):
            with tempfile.TemporaryDirectory() as text:
                place = Path(text)
                initrd = live.write_initrd(package, place, INIT)
                asked = Asked(f"{kernel.name} la{9 * levels + 12}")
                with booted(kernel, initrd, place, levels, options.uefi) as (socket, ram, told):
                    guest(asked, socket, ram, told, place)
                wrong += asked.wrong
    print(f"{wrong} rows differ")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
