"""Every command on every hostile input: bounded in memory and time, or one line that says which bound.

    python bench/hostile.py                   # some hundred MB of files, each command on each: half an hour
    python bench/hostile.py --only kdump --commands roots find

Each command runs by itself with an address space of 5 GiB. It passes if it ends with 0, 1 or 2 within 30 s of
processor time and 2 GiB (maximum resident set), says no more than a few lines on stderr, and prints no control
character. What does not is printed; the exit status is 1 then.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parent))

from hostile_inputs import inputs

ADDRESS_SPACE: Final = 5 << 30
MOST_MEMORY: Final = 2 << 30
MOST_SECONDS: Final = 30.0
GIVEN_UP: Final = 240.0
"""Seconds by the clock after which a command is ended; processor time cannot tell one that waits for ever."""
CONTROLS: Final = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]|\xe2\x80[\xaa-\xae]")
PROGRESS: Final = re.compile(rb"fivefold: (read |\d+ ranges read|comparing from )")
"""What long work says of itself where stderr is not a terminal."""
LINES: Final = 4

LAUNCHER: Final = """
import os, resource, signal, sys
seconds, space, command = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
pid = os.fork()
if not pid:
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.execv(command[0], command)
signal.signal(signal.SIGALRM, lambda *_: os.kill(pid, signal.SIGKILL))
signal.setitimer(signal.ITIMER_REAL, seconds)
_, status, used = os.wait4(pid, 0)
text = f"{os.waitstatus_to_exitcode(status)} {used.ru_utime + used.ru_stime} {used.ru_maxrss}"
os.write(0, text.encode())
"""
"""Runs a command and writes its status, processor time and memory to file 0, which can be written.

The maximum resident set of a process begins with that of the process which made it, so a large one cannot measure.
"""

COMMANDS: Final = {
    "info": ("info", "{file}"),
    "info-json": ("info", "{file}", "--json"),
    "walk": ("walk", "{file}", "0xffff800000000000", "0", "0x7fffffffffff"),
    "dump": ("dump", "{file}"),
    "dump-json": ("dump", "{file}", "--json"),
    "roots": ("roots", "{file}"),
    "audit": ("audit", "{file}"),
    "audit-sarif": ("audit", "{file}", "--format", "sarif"),
    "diff": ("diff", "{file}", "{file}"),
    "diff-other": ("diff", "{file}", "{other}"),
    "diff-relative": ("diff", "{file}", "{other}", "--relative"),
    "find": ("find", "{file}", "--phys", "0x1000", "--bytes", "00" * 1023 + "01"),
    "stats": ("stats", "{file}"),
    "layout": ("layout", "--source", "{file}"),
    "view": ("view", "{file}", "-o", "{folder}/view.html"),
    "explain": ("explain", "{file}"),
}


@dataclass(frozen=True)
class Ending:
    """How a command ended."""

    status: int
    seconds: float
    memory: int
    out: bytes
    err: bytes

    def wrong(self) -> Iterator[str]:
        """What is not as it should be, in words."""
        if self.status not in (0, 1, 2):
            yield f"status {self.status}"
        if self.seconds > MOST_SECONDS:
            yield f"{self.seconds:.0f} s"
        if self.memory > MOST_MEMORY:
            yield f"{self.memory >> 20} MiB"
        said = [line for line in self.err.splitlines() if not PROGRESS.match(line)]
        if b"Traceback" in self.err or len(said) > LINES:
            yield "many lines on stderr"
        if self.status == 2 and not self.err.startswith(b"fivefold: "):
            yield "no line on stderr"
        if found := CONTROLS.search(self.out + self.err):
            yield f"prints {found[0]!r}"


def run(words: list[str], seconds: float = GIVEN_UP, space: int = ADDRESS_SPACE) -> Ending:
    """Run a command of this Python's fivefold under limits."""
    command = [sys.executable, "-m", "fivefold", *words]
    launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(seconds), str(space), *command]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as report:
        subprocess.run(launcher, stdin=report, stdout=out, stderr=err, check=True)
        told = [file.seek(0) or file.read(1 << 24) for file in (out, err, report)]
    status, used, memory = told[2].split()
    return Ending(int(status), float(used), int(memory) << 10, told[0], told[1])


def told(command: str, name: str, wrong: str, ending: Ending) -> str:
    """A line of the report."""
    last = ending.err.decode(errors="replace").strip().rpartition("\n")[2][:150]
    result = f"FAILED {command} {name}: {wrong}" if wrong else f"ok {command} {name}: {ending.status}"
    return ascii(f"{result} ({ending.seconds:.1f} s, {ending.memory >> 20} MiB) {last}")[1:-1]


def main() -> int:
    """Run what was asked for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=int, default=16, help="how large the files are (default %(default)s)")
    parser.add_argument("--only", metavar="TEXT", default="", help="files with this in their names")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS), metavar="COMMAND")
    parser.add_argument("--verbose", action="store_true", help="print what passes, too")
    asked = parser.parse_args()
    count = failures = 0
    most_memory, most_seconds = 0, 0.0
    with tempfile.TemporaryDirectory(prefix="fivefold-hostile-") as place:
        folder = Path(place)
        wanted = [hostile for hostile in inputs(asked.scale) if asked.only in hostile.name]
        other = next(hostile for hostile in inputs(asked.scale) if hostile.name.startswith("sharing")).write(folder)
        for hostile in wanted:
            path = hostile.write(folder)
            for command in asked.commands:
                ending = run([word.format(file=path, other=other, folder=folder) for word in COMMANDS[command]])
                wrong = ", ".join(ending.wrong())
                count, failures = count + 1, failures + bool(wrong)
                most_memory, most_seconds = max(most_memory, ending.memory), max(most_seconds, ending.seconds)
                if wrong or asked.verbose:
                    print(told(command, hostile.name, wrong, ending), flush=True)
            if path != other:
                path.unlink()
    print(f"{count} commands, {failures} failed; at most {most_seconds:.1f} s and {most_memory >> 20} MiB")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
