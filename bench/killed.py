"""End every live command at random moments: the guest must go on, and no file of its memory be left.

    python bench/killed.py --count 200        # a few seconds each; `--qemu` as for guests.py
    python bench/killed.py --seed 7 --only 31 # one of them again

A QEMU with a guest of its firmware runs all the time. Each run draws a command, a way to its memory, a signal (INT,
TERM, HUP or KILL) and a moment from the start of the process to a while after it would have ended. Afterwards the guest
runs within seconds (of KILL by the watchdog's word), the folders for temporary files and of the command's work hold
no more than what it was asked to write, and the status is the command's own, or says the signal.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parent))

from fivefold.memory.live.qmp_client import QmpClient
from guests import started

COMMANDS: Final = {
    "info": (),
    "walk": ("0", "0xffffffff81000000"),
    "dump": (),
    "audit": ("--all-roots",),
    "stats": (),
    "roots": (),
    "find": ("--text", "fivefold"),
    "view": ("-o", "view.html"),
    "diff": ("SOURCE", "--other-cpu", "1"),
}
WAYS: Final = {
    "file": ("qmp:{folder}/qmp", "--live-ram", "file"),
    "process": ("qmp:{folder}/qmp", "--live-ram", "process"),
    "pmemsave": ("qmp:{folder}/qmp", "--live-ram", "pmemsave"),
    "gdb": ("gdb:{folder}/gdb",),
}
ENDINGS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
OWN: Final = {0, 1, 2}
GUEST: Final = ("-smp", "2", "-m", "256M", "-M", "q35,memory-backend=m")
RAM: Final = ("-object", "memory-backend-memfd,id=m,size=256M,share=on")


def running(folder: Path) -> bool:
    """Whether the guest runs, asked until it does or half a minute has passed."""
    until = time.monotonic() + 30
    client = QmpClient(str(folder / "watch"), timeout=30)
    try:
        while not client.ask("query-status")["running"] and time.monotonic() < until:
            time.sleep(0.05)
        return bool(client.ask("query-status")["running"])
    finally:
        client.close()


def one(rng: random.Random, folder: Path, longest: float) -> tuple[str, list[str]]:
    """Draw and do one: what it was, and what is wrong."""
    command, way = rng.choice(sorted(COMMANDS)), rng.choice(sorted(WAYS))
    ending, pause = rng.choice(ENDINGS), rng.uniform(0, longest)
    source, *options = (word.format(folder=folder) for word in WAYS[way])
    words = [source if word == "SOURCE" else word for word in COMMANDS[command]]
    label = f"{command} by {way}, {ending.name} after {pause:.2f} s"
    with tempfile.TemporaryDirectory(prefix="fivefold-killed-") as place:
        spill, here = Path(place, "spill"), Path(place, "here")
        spill.mkdir()
        here.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-m", "fivefold", command, source, *words, *options, "--freeze"],
            cwd=here,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | {"TMPDIR": str(spill)},
        )
        time.sleep(pause)
        process.send_signal(ending)
        _, said = process.communicate(timeout=240)
        return f"{label}: status {process.returncode}", list(
            wrong(process.returncode, ending, said, folder, spill, here)
        )


def wrong(status: int, ending: int, said: bytes, folder: Path, spill: Path, here: Path) -> Iterator[str]:
    """What should not be so afterwards."""
    if not running(folder):
        yield "the guest stands still"
    if left := [path.name for path in spill.iterdir()]:
        yield f"left in the folder for temporary files: {left}"
    # A draft beside the target is what KILL may leave of a page that is being written.
    if left := [path.name for path in here.iterdir() if path.name != "view.html" and ending != signal.SIGKILL]:
        yield f"left in the working folder: {left}"
    if status not in OWN | {128 + ending, -ending}:
        yield f"status {status}"
    if b"Traceback" in said or said.count(b"\n") > 3:
        yield f"says {said[-300:]!r}"


def main() -> int:
    """Run what was asked for; 1 where anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qemu", help="another QEMU, or a folder of unpacked packages")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="the number of one run, to do it again")
    parser.add_argument("--longest", type=float, default=4.0, help="seconds to the latest moment (default %(default)s)")
    asked = parser.parse_args()
    asked.words = [*GUEST, *RAM]
    failures, chosen = 0, range(asked.count) if asked.only is None else [asked.only]
    with tempfile.TemporaryDirectory(prefix="fivefold-guests-") as place:
        folder = Path(place)
        qemu = started(asked, folder)
        try:
            while not (folder / "gdb").exists():
                time.sleep(0.05)
            time.sleep(3)
            for number in chosen:
                label, found = one(random.Random(f"{asked.seed} {number}"), folder, asked.longest)
                failures += bool(found)
                if found or asked.only is not None:
                    print(f"{number}: {label}: {'; '.join(found) or 'well'}", flush=True)
        finally:
            qemu.kill()
            qemu.wait()
    print(f"{len(chosen)} runs, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
