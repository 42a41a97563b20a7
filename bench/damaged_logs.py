"""Damage logs with known causes at random, and see whether anything wrong is said of them with certainty or likelihood.

    python bench/damaged_logs.py --seed 1 --rounds 200

The logs are the vectors of tests/explain: each is cut, broken, shuffled, mixed with another CPU's lines, joined to
another log, given other line ends. What is then said with `certain` or `likely` must be what is said of the whole log,
or less. Each failure is printed with its log; the exit status is 1 if there are any.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import random
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

from fivefold.errors import FormatError
from fivefold.explain import Explanation, explain

TESTS: Final = Path(__file__).parents[1] / "tests" / "explain" / "logs"


def _of_the_tests(name: str) -> ModuleType:
    """A file of the tests as a module, by its path: which packages pytest makes of folders is its own affair."""
    spec = importlib.util.spec_from_file_location(f"damaged_logs_{name}", TESTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module


test_damage, test_vectors = _of_the_tests("test_damage"), _of_the_tests("test_vectors")

Lines = list[str]
Damage = Callable[[random.Random, Lines], Lines]
NOISE: Final = """\
[   99.100000] usb 1-1: new high-speed USB device number 4 using xhci_hcd
[   99.100001] audit: type=1400 audit(1700000000.123:45): apparmor="DENIED" operation="open" pid=812
[   99.100002] systemd[1]: Started Session 3 of user root.
[   99.100003] e1000 0000:00:03.0 ens3: Reset adapter
[   99.100004] Modules linked in: demo(O) virtio_net net_failover
[   99.100005] EXT4-fs (vda1): mounted filesystem with ordered data mode. Quota mode: none.
[   99.100006] PGD
[   99.100007] x86/PAT: demo:812 map pfn expected mapping type uncached-minus for [mem 0xfd000000-0xfd0fffff]
[   99.100008] Call Trace:
[   99.100009]  ? asm_sysvec_apic_timer_interrupt+0x1a/0x20
""".splitlines()
"""Lines that mean nothing, and such as are cut."""
PADDED: Final = ("Linux oops", "QEMU log", "KVM error", "UEFI report", "Xen report")
"""Formats that pad their numbers, so that a lost digit can be seen."""


ALSO_TRUE: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    ("Bochs log", "not-present"): ("idt-limit",),
    ("QEMU log", "not-present"): ("stack",),
    ("Linux oops", "not-present"): ("stack",),
    ("Linux oops", "address-tag"): ("non-canonical",),
}
"""What a log in which the first exception, the error code or CR4 is lost still says."""
UNPADDED: Final = ("Corrupted page table", "fault virtual address", "uvm_fault", "early exception", "Accessed Address")
ONLY_TOLD_BY: Final = {"SNP RMP fault on host": "RMP", "an RMP violation in lines out of order": "RMP"}
"""A word without which a log says something else: ``Oops:`` has 16 bits of the error code, and RMP is bit 31."""
_OTHER_REPORT: Final = re.compile(r"Unexpected Exception:\d|\d[deip]\[CPU\d")
"""Begins the second report of a log that has two, of coreboot or Bochs."""
UNFIT: Final = (
    "an address of 18 digits",
    "two CPUs mixed without a prefix",
    "two tasks by their caller prefix",
    "the first of two processes",
    "CR2 twice",
    "the line with the error code is of another exception",
    "a register that comes twice",
    "a null call, and CR2 of something else",
    "one report inside another",
    "a jump whose RIP is not where CR2 is",
    "a page fault where no number of levels has an address",
    "a page fault at an address of five levels, and CR4 of four",
    "an early exception, and the oops of another after it",
    "an early exception, and registers with another CR2",
    "an error code that does not fit its words",
    "a protection key, and P is clear",
    "a second line of entries is of a report",
)
"""Vectors with two causes, or with a number that is already damaged."""


class Truth(NamedTuple):
    """What is said of a whole log."""

    name: str
    text: str
    dialect: str
    mode: str | None
    rule: str
    level: str | None
    address: int | None
    confidence: str


def truth_of(name: str, text: str) -> Truth | None:
    """What is true of a vector, None where it is refused."""
    try:
        found = explain(io.BytesIO(text.encode()))
    except FormatError:
        return None
    cause = found.cause
    level = cause.level.name if cause.level else None
    return Truth(name, text, found.dialect, found.mode, cause.rule, level, cause.address, cause.confidence)


def truths_of(vector: Any) -> tuple[Truth, ...]:
    """What is true of a vector; where it has another report after the first, of that one too."""
    lines = vector.text.splitlines(keepends=True)
    starts = [0, *(number for number, line in enumerate(lines) if number and _OTHER_REPORT.search(line))][:2]
    found = [truth_of(vector.name, "".join(lines[start:])) for start in starts]
    return tuple(truth for truth in found if truth is not None) if found[0] is not None else ()


def wrong(found: Explanation, truth: Truth) -> str | None:
    """What is wrong with *found*, None if it is the truth or less."""
    cause = found.cause
    if cause.confidence == "guess":
        return None
    if found.mode not in (truth.mode, None):
        return f"mode {found.mode}, not {truth.mode}"
    if cause.rule not in (truth.rule, "unknown", *ALSO_TRUE.get((truth.dialect, truth.rule), ())):
        return f"rule {cause.rule}, not {truth.rule}"
    if cause.level is not None and cause.level.name != truth.level:
        return f"level {cause.level.name}, not {truth.level}"
    if cause.address not in (truth.address, None):
        return f"address {cause.address:#x}, not {truth.address or 0:#x}"
    if cause.confidence == "certain" and truth.confidence != "certain" and cause.rule != "unknown":
        return "certain, and the whole log is not"
    return None


# -- damage that test_damage.py does not do -------------------------------------------------------------


def duplicate(chance: random.Random, lines: Lines) -> Lines:
    return [line for one in lines for line in [one] * (1 + (chance.random() < 0.1))]


def swap(chance: random.Random, lines: Lines) -> Lines:
    """Neighbours change places, as a network log may have them."""
    lines = list(lines)
    for _ in range(3):
        if len(lines) > 1:
            at = chance.randrange(len(lines) - 1)
            lines[at], lines[at + 1] = lines[at + 1], lines[at]
    return lines


def insert(chance: random.Random, lines: Lines) -> Lines:
    lines = list(lines)
    for _ in range(4):
        lines.insert(chance.randrange(len(lines) + 1), chance.choice(NOISE))
    return lines


def line_ends(chance: random.Random, lines: Lines) -> Lines:
    end = chance.choice(("\r\n", "\r", "\n\n", "   \n", "\0\n", "\x1b[0m\n"))
    return end.join(lines).split("\n")


def quote(chance: random.Random, lines: Lines) -> Lines:
    prefix = chance.choice(("> ", "    ", "\t", "| ", "Nov 29 12:00:01 host kernel: ", "[console] "))
    return [prefix + line for line in lines]


WITH_HEAD: Final[tuple[Damage, ...]] = (duplicate, insert, line_ends, quote, test_damage.end_early)
"""Damage that leaves the line by which a report can be told from what comes before it."""
ALL: Final[tuple[Damage, ...]] = (
    *(damage for damage in test_damage.DAMAGES if damage is not test_damage.mix_cpus), swap, *WITH_HEAD,
)  # fmt: skip


def damaged(chance: random.Random, truth: Truth, kinds: Sequence[Damage] = ALL) -> tuple[str, str]:
    """A damaged text, and how it was damaged."""
    kinds = list(kinds)
    has_unpadded = any(word in truth.text for word in ("segfault", "traps:", "Corrupted", "(null)"))
    if truth.dialect not in PADDED or has_unpadded:
        kinds = [kind for kind in kinds if kind is not test_damage.drop_characters]
    if any(word in truth.text for word in UNPADDED):
        # A cut at the end of a line cannot be seen in a number that is not padded.
        kinds = [kind for kind in kinds if kind not in (test_damage.cut_lines, test_damage.break_lines)]
    lines = truth.text.splitlines()
    used = chance.sample(kinds, chance.choice((1, 1, 2, 3)))
    for kind in used:
        lines = kind(chance, lines) or ["-"]
    return "\n".join(lines), ", ".join(kind.__name__ for kind in used)


def check(text: str, truths: tuple[Truth, ...]) -> str | None:
    """What is wrong with what is said of *text*, None if it is true of one of its logs."""
    try:
        found = explain(io.BytesIO(text.encode()))
    except FormatError:
        return None
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a failure, and the next log is to be tried
        return f"{type(error).__name__}: {error}"
    said = [wrong(found, truth) for truth in truths if ONLY_TOLD_BY.get(truth.name.partition(":")[0], "") in text]
    if not said:
        return None  # what tells this one from another is lost
    return None if None in said else " and ".join(str(why) for why in said)


def main() -> int:
    """Run, print failures and a summary; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20, help="damages of each log")
    parser.add_argument("--show", type=int, default=5, help="failures that are printed whole")
    args = parser.parse_args()
    chance = random.Random(args.seed)
    fit = [one for one in test_vectors.vectors() if not one.name.startswith(UNFIT)]
    truths = [found for one in fit if (found := truths_of(one))]
    cases = failures = 0
    for own in truths:
        truth = own[0]
        for number in range(args.rounds):
            text, how = damaged(chance, truth)
            both = own
            if number % 4 == 3:
                other = chance.choice(truths)
                rest, also = damaged(chance, other[0], WITH_HEAD)
                text, how, both = f"{text}\n{rest}", f"{how}; joined to: {other[0].name} ({also})", (*own, *other)
            cases += 1
            if (why := check(text, both)) is not None:
                failures += 1
                print(f"FAIL {truth.name}: {why} [{how}]", flush=True)
                if failures <= args.show:
                    print(text, flush=True)
    print(f"seed {args.seed}: {len(truths)} logs, {cases} damaged ones, {failures} told wrongly")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
