"""Boot many times in the embedded engine, each time differently, and stop at nothing: RS-42's flaky boots, looked for.

    python bench/soak.py --boots 1000 --seed 1

CPU, entry, layout, words of the command line, memory size and map, load address and a second kernel are drawn at
random from the seed. A boot that fails is printed with the call that repeats it; the exit status is 1 then.
"""

from __future__ import annotations

import argparse
import random
import sys
import time

from fivefold.boot import BootOptions, Image, build_image
from fivefold.boot.guests import make_guest
from fivefold.boot.run import boot_guest
from fivefold.errors import FivefoldError
from fivefold.units import GIB, MIB


def draw(dice: random.Random, image: Image) -> tuple[str, BootOptions]:
    """A CPU and options that it can be booted with."""
    cpu = dice.choice(("la57", "la48"))
    entry = dice.choice(("pvh", "long48") if cpu == "la48" else ("pvh", "long48", "long57"))
    memory = dice.choice((24, 32, 48, 64, 100, 128, 256)) * MIB
    if dice.random() < 0.05:
        memory = dice.choice((5, 8)) * GIB
    words = []
    if dice.random() < 0.6:
        words.append(f"kaslr={dice.getrandbits(64)}")
    if dice.random() < 0.3 and memory < GIB:
        words.append("kasan")
    if dice.random() < 0.2:
        words.append("no5lvl")
    if dice.random() < 0.3 and memory < GIB:
        words.append(f"pages={dice.choice(('4k', '2m', '1g'))}")
    dice.shuffle(words)
    highest = (min(memory, 2 * GIB) - image.size) // (2 * MIB)
    return cpu, BootOptions(
        entry=entry,
        layout=dice.choice(("linux", "linux", "proposal")),
        memory=memory,
        load_address=2 * MIB * dice.randint(1, highest),
        cmdline=" ".join(words),
        timeout=120,
        kexec=dice.choice(("", "no5lvl", "kaslr=1")) if dice.random() < 0.15 and memory >= 64 * MIB else None,
    )


def main() -> int:
    """Boot as often as asked; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--boots", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    dice = random.Random(arguments.seed)
    image = build_image()
    failed, checks, began = 0, 0, time.perf_counter()
    for number in range(arguments.boots):
        cpu, options = draw(dice, image)
        try:
            run = boot_guest(make_guest(cpu, options, image), options, image)
            wrong = [f"{check.name}: {check.detail}" for check in run.checks if not check.ok]
            checks += len(run.checks)
        except FivefoldError as error:
            wrong = [str(error)]
        if wrong:
            failed += 1
            print(f"boot {number} failed: {cpu} {options}: {'; '.join(wrong)}", flush=True)
        if sys.stderr.isatty():
            print(f"\r{number + 1} of {arguments.boots}, {failed} failed", end="", file=sys.stderr, flush=True)
    seconds = time.perf_counter() - began
    print(f"{arguments.boots} boots, {checks} checks, {failed} boots failed, {seconds:.0f} s, seed {arguments.seed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
