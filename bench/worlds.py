"""Ask the kernel where it would write in random worlds of a loader, and hold each answer against the world itself.

    python bench/worlds.py --worlds 100000 --seed 1

Each world (`loader_worlds.py`) has the loader's tables, information, modules and earlier kernels anywhere, and a map
that is as bad as maps get. Asked are the place for the image under kaslr, the pages for the change of mode, the
secondary CPUs' trampoline, and what memblock hands out, which kexec and hibernation use. A place that meets anything in
use, and a place that is passed over though it is free, are both wrong. The exit status is 1 if anything was.
"""

from __future__ import annotations

import argparse
import mmap
import random
import sys
import time
from collections.abc import Iterator
from typing import Final

from fivefold.arch import LA57
from fivefold.metal.program import Program
from fivefold.metal.run import host
from fivefold.units import GIB, MIB
from loader_worlds import LARGE, PAGE, World, worlds

KERNEL: Final = "fivefold.kernel"
LIMIT: Final = 0x9_F000
"""The boot code takes nothing from here to 1 MiB (docs/boot.md)."""
ROUNDS: Final = 12


ROOM: Final = 256 * MIB
"""Physical memory of the largest world, and some."""


class Kernel:
    """The boot code and memblock as native code, in one world after the other."""

    def __init__(self, package: str = KERNEL) -> None:
        parts = ("boot.move.walk_places", "boot.startup.find_trampoline", "boot.in_use.note", "smp.smp.choose_place")
        roots = tuple(f"{package}.{name}" for name in (*parts, "paging.memblock.allocate"))
        asked = ("active_root", "active_levels", "bars_user_pages")
        replaced = {f"{package}.boot.in_use.{name}": f"worlds_registers.{name}" for name in asked}
        replaced[f"{package}.boot.startup.die"] = "worlds_registers.die"
        program = Program((f"{package}.paging.memblock",), replace=replaced, roots=roots)
        self.native = host.load(program)
        self.call = self.native.call
        self.memory = mmap.mmap(-1, ROOM)
        self.window = self.native.map(self.memory)
        self.native.set("phys.phys_window", self.window)

    def wrong(self, world: World, seed: int) -> Iterator[str]:
        """What is wrong with the kernel's answers in *world*."""
        self.native.set("worlds_registers.root", world.root)
        self.native.set("worlds_registers.levels", 5 if world.mode is LA57 else 4)
        for at, data in world.memory.items():
            self.memory[at : at + len(data)] = data
        yield from self.low_pages(world)
        yield from self.moves(world)
        yield from self.allocations(world, random.Random(seed))
        for at, data in world.memory.items():
            self.memory[at : at + len(data)] = bytes(len(data))

    def low_pages(self, world: World) -> Iterator[str]:
        """The change of mode: the highest pair of free pages. Tables that map memory are looked into afterwards."""

        def why_not(at: int) -> str:
            return world.why_not(at, at + 2 * PAGE) or world.maps_memory(at, at + 2 * PAGE)

        got = self.call("startup.find_trampoline", world.info, world.load, world.image_end)
        want = next((at for at in range(LIMIT - 2 * PAGE, 0, -PAGE) if not why_not(at)), 0)
        if got != want:
            yield f"trampoline at {got:#x}, expected {want:#x}: {why_not(got)}"

    def moves(self, world: World) -> Iterator[str]:
        """The image's place: every free one, and no other."""
        size = world.image_end - world.load
        free = [at for at in range(16 * MIB, GIB, LARGE) if not world.why_not(at, at + size)]
        count = self.call("move.walk_places", size, 1 << 32)
        if count != len(free):
            yield f"{count} places for the image, expected {len(free)}"
        for number in {0, count // 2, count - 1} & set(range(count)):
            if (at := self.call("move.walk_places", size, number)) not in free:
                yield f"place {number} for the image: {world.why_not(at, at + size)}"

    def allocations(self, world: World, dice: random.Random) -> Iterator[str]:
        """What the kernel proper takes, which has no use for the loader's tables any more."""
        cmdline = next(at for at, data in world.memory.items() if data == world.cmdline.encode() + b"\0")
        self.call("in_use.note", world.info, world.load, world.image_end, self.window + cmdline)
        self.call("smp.choose_place")
        place = self.native.get("smp.place")
        if place and (reason := world.why_not(place, place + 2 * PAGE, walked=False)):
            yield f"the secondary CPUs' trampoline: {reason}"
        given: list[tuple[int, int]] = []
        for _ in range(ROUNDS):
            size = dice.choice((PAGE, 16 * PAGE, MIB, 5 * MIB))
            at = self.call("memblock.allocate", size, dice.choice((PAGE, LARGE)))
            if at and (reason := world.why_not(at, at + size, walked=False)):
                yield f"allocated: {reason}"
            if at and any(at < end and start < at + size for start, end in given):
                yield f"{at:#x} was handed out twice"
            if at:
                given.append((at, at + size))


def main() -> int:
    """Try as many worlds as asked; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    kernel, failed, began = Kernel(), 0, time.perf_counter()
    for seed, world in worlds(arguments.seed, arguments.worlds):
        for problem in kernel.wrong(world, seed):
            failed += 1
            print(f"world {seed}: {problem}", flush=True)
    print(
        f"{arguments.worlds} worlds, {failed} wrong answers, {time.perf_counter() - began:.0f} s, seed {arguments.seed}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
