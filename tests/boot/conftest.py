"""Boots: one image for all, guests that options cannot describe, and images with a mistake put back."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

import pytest

from fivefold.boot import BootOptions, Image, Run, build_image
from fivefold.boot import run as boot_run
from fivefold.boot.image.build import boot_object, kernel_object, link_image
from fivefold.kernel.modes import MODES
from fivefold.kernel.report import WORDS
from fivefold.machine import Machine, start
from fivefold.units import MIB, PhysAddr

Boot = Callable[..., Run]


@pytest.fixture(scope="session")
def absent() -> Callable[[str], NoReturn]:
    """Skip a test for something that is not installed; fail it in CI, where all is."""

    def say(reason: str) -> NoReturn:
        if os.environ.get("FIVEFOLD_REQUIRE_QEMU"):
            pytest.fail(f"required here: {reason}", pytrace=False)
        pytest.skip(reason)

    return say


@pytest.fixture(scope="session")
def image() -> Image:
    """Our image, as it is."""
    return build_image()


@pytest.fixture
def boot(image: Image, monkeypatch: pytest.MonkeyPatch) -> Boot:
    """Boot on one CPU: ``boot("la57", entry="long48", …)`` with the fields of `BootOptions`.

    *guest* changes fields of the guest; *before* is called with the machine before it runs.
    """

    def run(
        cpu: str = "la57",
        *,
        given: Image | None = None,
        guest: dict[str, Any] | None = None,
        before: Callable[[Machine], None] | None = None,
        **options: Any,
    ) -> Run:
        chosen = BootOptions(**{"memory": 32 * MIB, "timeout": 20.0, **options})

        def prepared(*what: Any) -> Machine:
            machine = start(*what)
            if before is not None:
                before(machine)
            return machine

        monkeypatch.setattr(boot_run, "start", prepared)
        used = given or image
        made = boot_run.make_guest(cpu, chosen, used)
        return boot_run.boot_guest(replace(made, **(guest or {})), chosen, used)

    return run


@pytest.fixture
def passes(boot: Boot) -> Boot:
    """As `boot`, and every check must have passed."""

    def run(cpu: str = "la57", **options: Any) -> Run:
        done = boot(cpu, **options)
        assert done.ok, [*failed(done), done.event]
        return done

    return run


def failed(run: Run) -> list[str]:
    """The checks that did not pass."""
    return [f"{check.by} {check.name}: {check.detail}" for check in run.checks if not check.ok]


@pytest.fixture(scope="session")
def failures() -> Callable[[Run], list[str]]:
    """`failed`, for tests that expect some."""
    return failed


@pytest.fixture
def left_behind(boot: Boot, image: Image) -> Callable[..., dict[int, bytes]]:
    """Boot, and return what is in memory at its end: for each of *places*, (physical address, size), its bytes."""

    def run(places: list[tuple[int, int]], cpu: str = "la57", **options: Any) -> dict[int, bytes]:
        kept: dict[int, bytes] = {}
        before = options.pop("before", None)

        def watch(machine: Machine) -> None:
            if before is not None:
                before(machine)
            close = machine.close

            def read_and_close() -> None:
                for at, size in places:
                    kept.setdefault(at, machine.memory.read(PhysAddr(at), size))
                close()

            machine.close = read_and_close  # type: ignore[method-assign]

        boot(cpu, before=watch, **options)
        return kept

    return run


@pytest.fixture
def trampoline_place(left_behind: Callable[..., dict[int, bytes]], image: Image) -> Callable[..., int]:
    """Boot ours, and return where its change of mode borrowed two pages."""

    def run(**options: Any) -> int:
        word = image.physical("startup.table", image.load_address) + 8 * WORDS.index("trampoline")
        return int.from_bytes(left_behind([(word, 8)], **options)[word], "little")

    return run


@pytest.fixture(scope="session")
def objects() -> dict[str, bytes]:
    """What our image is linked from."""
    return {"boot": boot_object(), **{mode: kernel_object(mode) for mode in MODES}}


@pytest.fixture
def wrong_image(mutated: Callable[..., str], objects: dict[str, bytes]) -> Callable[..., Image]:
    """Our image with a mistake in it: the file, pairs of text, and which objects are compiled from that."""

    def build(file: str, *changes: tuple[str, str], parts: tuple[str, ...] = ("boot",)) -> Image:
        package = mutated(file, *changes)
        made = {part: boot_object(package) if part == "boot" else kernel_object(part, package) for part in parts}
        return link_image({**objects, **made})

    return build
