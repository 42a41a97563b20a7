"""Make known faults on Bochs, give its default log to `explain`, and judge what is said by what is true.

    python bench/bochs_faults.py                      # all faults of the image, in both modes, and those of the lab
    python bench/bochs_faults.py --only reserved-bit --logs DIR      # one of them; its log is kept, and read next time

The image's own faults (`fault=NAME`, kernel/selftest/faults.py) are booted on a CPU with LA57 and on one without; those
of the lab are the guests of tests/explain/faults/test_broken_guests.py, which GRUB starts from an ISO like the image.
What is true of a fault follows from its name, or stands in its row. `right` is the true rule. `gate`: the log has no
more than the delivery that failed, and that is told: the image has no IDT, and the lab's is empty. `less` is `unknown`,
a push of which no more is known, or a guess. `none`: Bochs raises nothing there. Anything else is WRONG, and so is a
mode, a level or an address that is not the true one, whatever the rule. The exit status is 1 if anything is. Some ten
minutes.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import re
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

from fivefold.boot import BootOptions, build_image
from fivefold.boot.guests import make_guest
from fivefold.boot.image.iso import iso_file
from fivefold.errors import FivefoldError
from fivefold.explain import Explanation, explain
from fivefold.kernel.selftest.faults import FAULTS
from fivefold.machine import Guest, start
from fivefold.units import MIB

TESTS: Final = Path(__file__).parents[1] / "tests"
SECONDS: Final = 120.0
MULTIBOOT2: Final = 0xE852_50D6
HEADER: Final = 0x1000
"""Bytes before the guest, for the header that GRUB looks for."""


class Known(NamedTuple):
    """A fault and what is true of it. *level*: of the refusing entry, None where there is none, or it is not stated."""

    name: str
    mode: str
    rule: str
    level: str | None
    address: int | None
    guest: Callable[[], Guest]


def _module(path: str) -> ModuleType:
    """A file of the tests as a module."""
    name = "bochs_faults_" + Path(path).stem
    spec = importlib.util.spec_from_file_location(name, TESTS / path)
    assert spec is not None and spec.loader is not None
    module = sys.modules.setdefault(name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module


# -- the faults ------------------------------------------------------------------------------------------------


def of_the_image() -> Iterator[Known]:
    """Each `fault=NAME`, in both modes."""
    rule_of = _module("boot/options/test_faults_on_purpose.py").rule_of
    image = build_image()
    for cpu in ("la57", "la48"):
        for fault in FAULTS:
            if cpu == "la48" and fault.name == "toggle-la57":
                continue  # CR4.LA57 is a reserved bit there: told as such, below
            options = BootOptions(engine="bochs", entry="multiboot2", memory=64 * MIB, cmdline=f"fault={fault.name}")
            yield Known(
                f"{fault.name} {cpu}", cpu, rule_of(fault.name), None, None,
                lambda cpu=cpu, options=options: make_guest(cpu, options, image),
            )  # fmt: skip


def of_the_lab() -> Iterator[Known]:
    """The guests with one thing broken."""
    lab, rows = _module("explain/conftest.py"), _module("explain/faults/test_broken_guests.py").CASES
    for row in rows:
        level = row.get("level")
        yield Known(
            f"lab: {row['name']}", row["mode"].name, row["rule"], level.name if level else None, row.get("address"),
            lambda row=row: _guest_of_the_lab(lab, row),
        )  # fmt: skip


def _guest_of_the_lab(lab: ModuleType, row: dict[str, Any]) -> Guest:
    bench = lab.build(lab.Case(**row))
    (begin, data), *_ = bench.ram.banks()
    iso = iso_file(None, _with_header(begin, bytes(data)))
    return Guest(image=iso, entry="multiboot2", cpu="la57", memory=64 * MIB)


def _with_header(begin: int, data: bytes) -> bytes:
    """*data*, to be loaded and entered at *begin*, behind a header with its addresses (Multiboot 2, "Header tags")."""
    at = begin - HEADER
    addresses = struct.pack("<HHIIIII", 2, 0, 24, at, at, begin + len(data), 0)
    entry = struct.pack("<HHIII", 3, 0, 12, begin, 0)
    tags = addresses + entry + struct.pack("<HHI", 0, 0, 8)
    length = 16 + len(tags)
    header = struct.pack("<IIII", MULTIBOOT2, 0, length, -(MULTIBOOT2 + length) & 0xFFFF_FFFF)
    return (header + tags).ljust(HEADER, b"\0") + data


# -- boots and verdicts ----------------------------------------------------------------------------------------


def log_of(guest: Guest, program: str | None) -> tuple[str, bytes]:
    """How the run ended, and the log's text, with the registers that follow the end of the run."""
    with start("bochs", guest, program=program) as machine:
        event = machine.run(SECONDS)
        return str(event), machine.log


def verdict(found: Explanation, known: Known) -> tuple[str, str]:
    """``right``, ``less`` or ``WRONG``, and what was said."""
    cause = found.cause
    said = f"{found.mode}, {cause.rule} ({cause.confidence}): {found.headline}"
    if found.mode not in (known.mode, None) or found.outcome != "triple-fault":
        return "WRONG", f"{found.outcome}; {said}"
    if known.level and cause.rule == known.rule and cause.level and cause.level.name != known.level:
        return "WRONG", f"at {cause.level.name}, not {known.level}; {said}"
    if known.address is not None and cause.address not in (None, known.address) and cause.confidence != "guess":
        return "WRONG", f"not at {known.address:#x}; {said}"
    if cause.rule == known.rule:
        return "right", said
    if (
        cause.rule in ("idt-limit", "idt-entry")
        and cause.confidence != "certain"
        and _may_be(found.headline, known.rule)
    ):
        return "gate", said
    return ("less" if cause.rule in ("unknown", "stack") or cause.confidence == "guess" else "WRONG"), said


def _may_be(headline: str, rule: str) -> bool:
    """Whether the exception that *headline* takes for possible is that of *rule*, if it names one."""
    named = re.search(r"perhaps an? (#\w+)", headline)
    vector = "#GP" if rule in ("non-canonical", "mode-change-refused") else "#PF"
    return named is None or named[1] == vector


def judge(known: Known, args: argparse.Namespace) -> str:
    """Boot, explain, and print the verdict."""
    kept = args.logs / f"{known.name.replace(' ', '-').replace(':', '')}.log" if args.logs else None
    if kept is not None and kept.exists():
        event, log = "as kept", kept.read_bytes()
    else:
        event, log = log_of(known.guest(), args.bochs)
        if kept is not None:
            kept.write_bytes(log)
    if b"exception with no resolution" not in log:
        print(f"none  {known.name} [{known.mode}, {known.rule}]: on Bochs it raises nothing: {event}", flush=True)
        return "none"
    try:
        result, said = verdict(explain(io.BytesIO(log)), known)
    except FivefoldError as error:
        result, said = "WRONG", f"{event}: {error}"
    print(f"{result:5} {known.name} [{known.mode}, {known.rule}]: {said}", flush=True)
    return result


def main() -> int:
    """Judge all that is asked for; 1 if anything is wrong, 2 without Bochs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="WORD", help="faults with WORD in their names")
    parser.add_argument("--bochs", help="the program, as for `fivefold boot`; else $FIVEFOLD_BOCHS, else the path")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="keep the logs there")
    args = parser.parse_args()
    counts: Counter[str] = Counter()
    if args.logs:
        args.logs.mkdir(parents=True, exist_ok=True)
    try:
        for source in (of_the_image, of_the_lab):
            counts.update(judge(known, args) for known in source() if args.only in known.name)
    except FivefoldError as error:
        print(f"bochs_faults: {error}", file=sys.stderr)
        return 2
    said = ", ".join(f"{counts[word]} {word}" for word in ("right", "gate", "less", "WRONG", "none"))
    print(f"{counts.total()} faults: {said}")
    return bool(counts["WRONG"])


if __name__ == "__main__":
    sys.exit(main())
