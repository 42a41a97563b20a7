"""All pairs of options on each engine: each passes, or is refused in one line before anything is started.

Pairs that can be had together are packed into as few boots as a simple search finds.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import combinations, count, islice, product
from typing import Any, Final

import pytest

from fivefold.boot import BootOptions, Image
from fivefold.boot import boot as boot_all
from fivefold.errors import FivefoldError

MIB = 1 << 20
Value = tuple[str, Any]
AXES: Final[dict[str, tuple[Any, ...]]] = {
    "cpu": ("la57", "la48"),
    "layout": ("linux", "proposal"),
    "memory": (256 * MIB, 100 * MIB),
    "load_address": (None, 0x400_0000),
    "kexec": (None, "no5lvl"),
    "hibernate": (False, True),
    "smp": (1, 2),
    "no5lvl": ("", "no5lvl"),
    "kaslr": ("", "kaslr=7"),
    "kasan": ("", "kasan"),
    "pages": ("", "pages=4k"),
    "poweroff": ("", "poweroff"),
}
WORDS: Final = ("no5lvl", "kaslr", "kasan", "pages", "poweroff")
ENTRIES: Final = {
    "unicorn": ("pvh", "long48", "long57"),
    "qemu": ("pvh", "long48", "long57", "multiboot2", "efi", "efi57"),
    "bochs": ("multiboot2",),
}
BOTH: Final = "kexec=no5lvl hibernate=True"
REFUSED: Final = {
    "unicorn": {BOTH, "cpu=la48 entry=long57"},
    "qemu": {
        BOTH,
        "cpu=la48 entry=long57",
        "cpu=la48 entry=efi57",
        "kexec=no5lvl entry=efi",
        "kexec=no5lvl entry=efi57",
        "hibernate=True entry=efi",
        "hibernate=True entry=efi57",
        "hibernate=True entry=multiboot2",
        "smp=2 entry=efi57",
        # Firmware alone takes more than that.
        "memory=104857600 entry=efi",
        "memory=104857600 entry=efi57",
    },
    "bochs": {"hibernate=True"},
}
"""What docs/machine.md says cannot be had; Bochs cannot hibernate whatever it is paired with."""


def axes(engine: str) -> dict[str, tuple[Any, ...]]:
    return {**AXES, "entry": ENTRIES[engine]}


def spelled(values: Iterable[Value]) -> str:
    return " ".join(f"{name}={value}" for name, value in values)


def is_refused(engine: str, values: Iterable[Value]) -> bool:
    """Whether *values* hold something that `REFUSED` lists."""
    names = {spelled([value]) for value in values}
    return any(set(pair.split()) <= names for pair in REFUSED[engine])


def options(engine: str, values: dict[str, Any]) -> BootOptions:
    words = " ".join(values[name] for name in WORDS if values.get(name))
    rest = {name: value for name, value in values.items() if name not in (*WORDS, "cpu")}
    return BootOptions(
        **{"memory": 256 * MIB, "entry": ENTRIES[engine][0], **rest}, engine=engine, cmdline=words, timeout=90
    )


def all_pairs(engine: str) -> list[tuple[Value, Value]]:
    own = axes(engine)
    return [
        ((one, first), (other, second))
        for one, other in combinations(own, 2)
        for first, second in product(own[one], own[other])
    ]


def packed(engine: str) -> list[dict[str, Any]]:
    """Boots that have every pair that can be had: of many drawn ones the best each time, the same every time."""
    dice, own = random.Random(1), axes(engine)
    left = {pair for pair in all_pairs(engine) if not is_refused(engine, pair)}
    boots = []
    while left:
        wanted = dict(dice.choice(sorted(left, key=str)))
        drawn = ({name: dice.choice(values) for name, values in own.items()} | wanted for _ in count())
        allowed = (boot for boot in drawn if not is_refused(engine, boot.items()))
        best = max(
            islice(allowed, 40),
            key=lambda boot: sum(all(boot[name] == value for name, value in pair) for pair in left),
        )
        boots.append(best)
        left = {pair for pair in left if not all(best[name] == value for name, value in pair)}
    return boots


def ids(boots: list[dict[str, Any]]) -> list[str]:
    default = {name: values[0] for name, values in AXES.items()}
    return [spelled((n, v) for n, v in boot.items() if default.get(n) != v) for boot in boots]


def check(engine: str, values: dict[str, Any], image: Image) -> None:
    report = boot_all((values["cpu"],), options(engine, values), image)
    failed = [(check.name, check.detail) for run in report.runs for check in run.checks if not check.ok]
    assert report.ok, failed


@pytest.mark.parametrize("values", packed("unicorn"), ids=ids(packed("unicorn")))
def test_pairs_on_unicorn(image: Image, values: dict[str, Any]) -> None:
    check("unicorn", values, image)


@pytest.mark.qemu
@pytest.mark.parametrize("values", packed("qemu"), ids=ids(packed("qemu")))
def test_pairs_on_qemu(image: Image, values: dict[str, Any]) -> None:
    check("qemu", values, image)


@pytest.mark.bochs
@pytest.mark.parametrize("values", packed("bochs"), ids=ids(packed("bochs")))
def test_pairs_on_bochs(image: Image, values: dict[str, Any]) -> None:
    check("bochs", values, image)


@pytest.mark.parametrize("engine", ENTRIES)
def test_what_is_refused_is_refused_in_one_line(engine: str, image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a machine is started: nothing runs, so that a pair that is let through is seen."""

    def started(*_: Any) -> None:
        pytest.fail("a machine was started")

    monkeypatch.setattr("fivefold.boot.run.start", started)
    for pair in (pair for pair in all_pairs(engine) if is_refused(engine, pair)):
        values = {"cpu": "la57", **dict(pair)}
        if any(name == "memory" for name, _ in pair) and "efi" in values.get("entry", ""):
            continue
        with pytest.raises(FivefoldError) as refusal:
            boot_all((values["cpu"],), options(engine, values), image)
        assert "\n" not in str(refusal.value)
