"""Boot many times, each time differently, on every engine, and stop at nothing: RS-42's flaky boots, looked for.

    python bench/soak.py --boots 1000 --seed 1 --log soak.jsonl
    python bench/soak.py --first 500 --boots 500 --qemu ~/qemu10 --bochs ~/bochs3      # a part of it, other engines

Engine, CPU, entry, layout, words of the command line, memory, load address, more CPUs, chains of kernels, hibernation
and the world that a loader leaves (`hostile_loader.py`) are drawn from the seed and the boot's number: a third are UEFI
with a random `kaslr`. What is in the log is not run again, so that parts and interrupted runs add up; `--kind` runs
some of them first. An engine that is missing is named and its boots are given to Unicorn.
A boot that is refused in words which could not come earlier is counted by itself. The exit status is 1 if one failed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from fivefold.boot import BootOptions, Image, Run, build_image
from fivefold.boot.guests import make_guest
from fivefold.boot.run import boot_guest
from fivefold.errors import FivefoldError
from fivefold.machine import available
from fivefold.units import GIB, MIB
from hostile_loader import boot_world, bootable, entry_of
from loader_worlds import Wish

KINDS: Final = {"uefi": 34, "unicorn": 24, "qemu": 18, "world": 16, "bochs": 8}
"""What a boot is, out of a hundred."""
MODELS: Final = {
    "unicorn": ("la57", "la57", "la48"),
    "qemu": ("la57", "la57", "la48", "Skylake-Server", "EPYC-Rome", "Haswell", "Snowridge"),
    "bochs": ("la57", "la57", "la48", "corei7_icelake_u", "ryzen"),
}
"""CPUs by our name, and models by the engine's own."""
REFUSED: Final = (
    "to the end of memory, over the image",
    "# kexec: no memory for the next kernel",
    "# kexec: the memory map has too many rows to hand on",
)
"""Words of a refusal that cannot come before the boot: QEMU's loader and a kernel that was saved, a world too full."""


@dataclass(frozen=True)
class Boot:
    """One boot: what kind, on which CPU, with what; *world* is the seed of a loader's world."""

    kind: str
    cpu: str
    options: BootOptions
    world: int | None = None


class Engines:
    """What there is to boot on: for each engine its programs, None for the system's."""

    def __init__(self, qemu: list[str], bochs: str | None) -> None:
        self.programs: dict[str, list[str | None]] = {"unicorn": [None]}
        for engine, wanted in (("qemu", [None, *qemu]), ("bochs", [bochs])):
            reasons = {program: available(engine, program) for program in wanted}
            self.programs[engine] = [program for program, reason in reasons.items() if reason is None]
            for reason in filter(None, reasons.values()):
                print(f"soak: without {engine}: {reason}", file=sys.stderr)

    def has(self, engine: str) -> bool:
        """Whether there is a program for *engine*."""
        return bool(self.programs[engine])


def draw(dice: random.Random, image: Image, engines: Engines) -> Boot:
    """What to boot."""
    kind = dice.choices(list(KINDS), list(KINDS.values()))[0]
    if not engines.has({"uefi": "qemu", "world": "unicorn"}.get(kind, kind)):
        kind = "unicorn"
    return {"uefi": draw_uefi, "world": draw_loader}.get(kind, draw_plain)(dice, image, engines, kind)


def words(dice: random.Random, small: bool, kaslr: float = 0.6) -> str:
    """A command line; what touches every page only where memory is *small*."""
    drawn = [f"kaslr={dice.getrandbits(64)}"] if dice.random() < kaslr else []
    drawn += [word for word, odds in (("no5lvl", 0.2), ("poweroff", 0.15)) if dice.random() < odds]
    if small:
        drawn += [
            word
            for word, odds in (("kasan", 0.2), (f"pages={dice.choice(('4k', '2m', '1g'))}", 0.3))
            if dice.random() < odds
        ]
    dice.shuffle(drawn)
    return " ".join(drawn)


def chain(dice: random.Random) -> str | None:
    """Up to three more kernels, each started by the one before; mostly none."""
    if dice.random() > 0.25:
        return None
    lines = (f"{dice.choice(('', 'no5lvl '))}kaslr={dice.getrandbits(32)}" for _ in range(dice.choice((1, 1, 2, 3))))
    return " kexec -- ".join(line if dice.random() < 0.8 else "no5lvl" for line in lines)


def draw_uefi(dice: random.Random, image: Image, engines: Engines, kind: str) -> Boot:
    """By firmware, in four or five levels, at a random place."""
    cpu = dice.choice(("la57", "la57", "la48", "Skylake-Server", "EPYC-Rome"))
    entry: Any = dice.choice(("efi", "efi57")) if cpu == "la57" else "efi"
    memory = dice.choice((256, 257, 300, 384, 512, 777, 1024, 2048)) * MIB
    options = BootOptions(
        engine="qemu",
        entry=entry,
        layout=dice.choice(("linux", "linux", "proposal")),
        memory=memory,
        cmdline=words(dice, dice.random() < 0.1 and memory <= 512 * MIB, kaslr=1.0),
        smp=dice.choice((1, 1, 1, 2, 4)) if entry == "efi" else 1,
        program=dice.choice(engines.programs["qemu"]),
        timeout=1800,
    )
    return Boot(kind, cpu, options)


def draw_plain(dice: random.Random, image: Image, engines: Engines, kind: str) -> Boot:
    """By the 32-bit or 64-bit entry or GRUB, with all that goes together."""
    cpu = dice.choice(MODELS[kind])
    entries = {"unicorn": ("pvh", "long48", "long57"), "qemu": ("pvh", "long48", "long57", "multiboot2")}
    five = cpu == "la57"
    entry: Any = dice.choice([e for e in entries.get(kind, ("multiboot2",)) if five or e != "long57"])
    sizes = (32, 48, 64, 100, 128, 256) if entry == "multiboot2" else (24, 32, 48, 64, 100, 128, 256)
    memory = dice.choice(sizes) * MIB
    if kind != "bochs" and dice.random() < 0.05:
        memory = dice.choice((5, 8)) * GIB
    highest = (min(memory, 2 * GIB) - image.size - (24 * MIB if entry == "multiboot2" else 0)) // (2 * MIB)
    line, second = words(dice, memory < GIB), chain(dice) if memory >= 64 * MIB else None
    saved = second is None and entry != "multiboot2" and 64 * MIB <= memory < GIB and dice.random() < 0.15
    options = BootOptions(
        engine=kind,
        entry=entry,
        layout=dice.choice(("linux", "linux", "proposal")),
        memory=memory,
        load_address=2 * MIB * dice.randint(1, max(highest, 1)) if entry != "multiboot2" else None,
        cmdline=line,
        kexec=second,
        hibernate=saved,
        smp=dice.choice((1, 1, 2, 3)) if kind != "unicorn" else 1,
        program=dice.choice(engines.programs[kind]),
        timeout=1800,
    )
    return Boot(kind, cpu, options)


def draw_loader(dice: random.Random, image: Image, engines: Engines, kind: str) -> Boot:
    """A world of a loader of our own, entered at `entry_64`."""
    engine = dice.choice([name for name in ("unicorn", "qemu", "qemu", "bochs") if engines.has(name)])
    cpu = dice.choice(("la57", "la57", "la48"))
    options = BootOptions(
        engine=engine,
        entry="multiboot2" if engine == "bochs" else "long48",
        cmdline=words(dice, dice.random() < 0.3, kaslr=0.8),
        kexec=chain(dice),
        smp=dice.choice((1, 2)) if engine != "unicorn" else 1,
        program=dice.choice(engines.programs[engine]),
        timeout=1800,
    )
    wish = wish_of(options, image)
    seed = dice.getrandbits(32)
    # A small world in many pieces has no room for a chain of kernels, and the kernel says so.
    while (world := bootable(seed, wish, cpu)) is None or (options.kexec and world.end < 48 * MIB):
        seed += 1
    return Boot(kind, cpu, replace(options, entry=entry_of(world, engine)), seed)  # type: ignore[arg-type]


def wish_of(options: BootOptions, image: Image) -> Wish:
    """What the world must have for *options*."""
    module = b"" if options.kexec is None else image.place()
    return Wish(image.size, options.full_cmdline, module, options.engine != "bochs" and options.kexec is None, GIB)


def run(boot: Boot, image: Image) -> Run:
    """Boot, and judge."""
    if boot.world is not None:
        world = bootable(boot.world, wish_of(boot.options, image), boot.cpu)
        assert world is not None
        return boot_world(world, image, boot.cpu, boot.options)
    options = replace(boot.options, load_address=boot.options.load_address or image.load_address)
    return boot_guest(make_guest(boot.cpu, options, image), options, image)


def outcome(number: int, boot: Boot, image: Image) -> dict[str, Any]:
    """A row of the log."""
    began, checks, wrong, said, refused = time.perf_counter(), 0, list[str](), "", ""
    try:
        done = run(boot, image)
        checks = len(done.checks)
        wrong = [f"{check.name}: {check.detail}" for check in done.checks if not check.ok]
        said = done.output[-400:] if wrong else ""
        refused = next((words for words in REFUSED if wrong and boot.world is not None and words in done.output), "")
    except FivefoldError as error:
        wrong, refused = [str(error)], next((words for words in REFUSED if words in str(error)), "")
    options = boot.options
    return {
        "number": number, "kind": boot.kind, "engine": options.engine, "program": options.program, "cpu": boot.cpu,
        "entry": options.entry, "world": boot.world, "call": str(options), "checks": checks,
        "wrong": [] if refused else wrong, "refused": refused, "said": said,
        "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def summary(rows: list[dict[str, Any]]) -> str:
    """What was booted, and how it came out."""
    by = Counter((row["kind"], row["engine"], row["program"] or "the system's") for row in rows)
    lines = [f"{kind:8} {engine:8} {program}: {count}" for (kind, engine, program), count in sorted(by.items())]
    failed = sum(bool(row["wrong"]) for row in rows)
    checks, seconds = sum(row["checks"] for row in rows), sum(row["seconds"] for row in rows)
    refused = sum(bool(row.get("refused")) for row in rows)
    last = f"{len(rows)} boots, {checks} checks, {refused} refused, {failed} boots failed, {seconds:.0f} s"
    return "\n".join([*lines, last])


def main() -> int:
    """Boot as often as asked; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--boots", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first boot")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--qemu", action="append", default=[], help="another QEMU, as for fivefold boot")
    parser.add_argument("--bochs", help="another Bochs, as for fivefold boot")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only boots of this kind")
    parser.add_argument("--log", type=Path, help="a file of one JSON object a boot; what is in it is not run again")
    given = parser.parse_args()
    rows = [json.loads(line) for line in given.log.open()] if given.log and given.log.exists() else []
    there = {row["number"] for row in rows}
    image, engines = build_image(), Engines(given.qemu, given.bochs)
    for number in range(given.first, given.first + given.boots):
        if number in there:
            continue
        boot = draw(random.Random(f"{given.seed} {number}"), image, engines)
        if boot.kind not in (given.kind or KINDS):
            continue
        rows.append(row := outcome(number, boot, image))
        if row["wrong"]:
            print(
                f"boot {number} failed: {boot.cpu} {boot.options} {boot.world}: {'; '.join(row['wrong'])}", flush=True
            )
        if given.log is not None:
            with given.log.open("a") as log:
                log.write(json.dumps(row) + "\n")
    print(summary(rows))
    return 1 if any(row["wrong"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
