"""The image on a QEMU newer than the system's, where FIVEFOLD_NEWER_QEMU names one: what TCG forgives changes.

Newer ones execute INVD in ring 3, know more CPUs, and refuse some instructions by another exception.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from fivefold.boot import Run
from fivefold.machine import available

Boot = Callable[..., Run]


@pytest.fixture(scope="module")
def newer() -> str:
    path = os.environ.get("FIVEFOLD_NEWER_QEMU", "")
    reason = available("qemu", path) if path else "FIVEFOLD_NEWER_QEMU names no other QEMU (.ci/unpack makes one)"
    if reason is not None:
        (pytest.fail if os.environ.get("FIVEFOLD_REQUIRE_NEWER_QEMU") else pytest.skip)(reason)
    return path


@pytest.mark.parametrize(
    ("cpu", "mode"),
    [
        ("la57", "la57"),
        ("la48", "la48"),
        ("SapphireRapids", "la57"),
        ("EPYC-Genoa", "la57"),
        ("qemu64", "la48"),
        ("max,-syscall", "la57"),
        ("max,-pge,-pcid", "la57"),
    ],
)
def test_models(passes: Boot, newer: str, cpu: str, mode: str) -> None:
    assert passes(cpu, engine="qemu", program=newer, cmdline="kaslr=7").mode == mode


def test_a_chain_and_more_cpus(passes: Boot, newer: str) -> None:
    run = passes("la57", engine="qemu", program=newer, smp=3, kexec="no5lvl kaslr=3 kexec -- kaslr=4", memory=64 << 20)
    assert run.mode == "la57"


@pytest.mark.parametrize("entry", ["efi", "efi57"])
def test_by_firmware(passes: Boot, newer: str, entry: str) -> None:
    run = passes("la57", engine="qemu", program=newer, entry=entry, cmdline="kaslr=17", memory=256 << 20, timeout=90.0)
    assert run.mode == "la57"
