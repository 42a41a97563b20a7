"""Firecracker and cloud-hypervisor through stand-ins that check how they are started, and print what a guest would."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fivefold.matrix.cells import Cell
from fivefold.matrix.run.run_cell import Task, run_cell
from fivefold.matrix.run.watch import Patience
from fivefold.matrix.vmm.base import Files
from fivefold.matrix.vmm.kvm_only import CloudHypervisorDriver, FirecrackerDriver, KvmOnlyDriver

CELL = Cell("pvh", path="pvh", cpu="la48", smp=2)
STAND_IN = """#!/usr/bin/env python3
import json, os, sys, time
words = sys.argv[1:]
if words == ["--version"]:
    print("NAME v1.7.0")
    raise SystemExit
told = {"words": words, "pid": os.getpid()}
if "--config-file" in words:
    told["config"] = config = json.load(open(words[words.index("--config-file") + 1]))
    kernel, initramfs = config["boot-source"]["kernel_image_path"], config["boot-source"]["initrd_path"]
    cmdline = config["boot-source"]["boot_args"]
else:
    kernel, initramfs, cmdline = (words[words.index(f"--{name}") + 1] for name in ("kernel", "initramfs", "cmdline"))
told["kernel"], told["initramfs"] = open(kernel).read(), open(initramfs).read()
json.dump(told, open("TOLD", "w"))
texts = ["begin 1", "release 6.1.0", f"cmdline {cmdline}", "flags nx", "cpus 2", "end"]
for number, text in enumerate(texts):
    body, found = f"f5 {number:x} {text}".encode(), 0x811C9DC5
    for byte in body:
        found = (found ^ byte) * 0x01000193 & 0xFFFFFFFF
    os.write(1, body + b" * %x\\r\\n" % found)
time.sleep(WAIT)
"""


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    made = []
    for data in (b"the kernel", b"the initramfs"):
        made.append(os.memfd_create("test"))
        os.write(made[-1], data)
    yield Files(*made, str(tmp_path))
    for file in made:
        os.close(file)


def stand_in(kind: Any, place: Path, wait: int = 60, text: str = STAND_IN) -> KvmOnlyDriver:
    program = place / kind.name
    text = text.replace("NAME", kind.name).replace("TOLD", str(place / "told")).replace("WAIT", str(wait))
    program.write_text(text)
    program.chmod(0o755)
    (place / "kvm").touch()
    found: KvmOnlyDriver = kind(str(program), kvm=str(place / "kvm"))
    return found


@pytest.mark.parametrize("kind", [FirecrackerDriver, CloudHypervisorDriver])
def test_a_cell_is_booted_and_the_monitor_ended(kind: Any, files: Files, tmp_path: Path) -> None:
    driver = stand_in(kind, tmp_path)
    assert driver.version() == "1.7.0" and driver.refusal(CELL) is None
    found = run_cell(Task(CELL, "bzImage", files, Patience(60)), driver)
    assert (found.outcome, found.mode) == ("ready", "la48")
    assert {check.name: check.ok for check in found.checks if check.name.startswith("told-")} == {
        "told-cmdline": True, "told-mode": True, "told-cpus": True,
    }  # fmt: skip
    told = json.loads((tmp_path / "told").read_text())
    assert (told["kernel"], told["initramfs"]) == ("the kernel", "the initramfs")
    assert not Path(f"/proc/{told['pid']}").exists()
    if kind is FirecrackerDriver:
        assert told["config"]["machine-config"] == {"vcpu_count": 2, "mem_size_mib": 512, "smt": False}
    else:
        assert "--cpus boot=2 --memory size=512M --serial tty --console off" in " ".join(told["words"])


def test_a_monitor_that_ends_with_its_guest(files: Files, tmp_path: Path) -> None:
    text = "#!/bin/sh\necho 'Linux version 6.1'\n"
    found = run_cell(Task(CELL, "bzImage", files, Patience(60)), stand_in(FirecrackerDriver, tmp_path, text=text))
    assert found.outcome == "reset"


def test_what_is_refused_and_why(tmp_path: Path) -> None:
    assert FirecrackerDriver("x", kvm="/nowhere").refusal(CELL) == (
        "firecracker needs KVM, and /nowhere cannot be opened here"
    )
    driver = stand_in(CloudHypervisorDriver, tmp_path)
    for cell, reason in (
        (Cell("c", cpu="la48"), "takes a vmlinux"),
        (Cell("c", cpu="la48", path="pvh", hibernate=True), "has no NVMe disk"),
        (Cell("c", cpu="la48", path="pvh", memory="1G+1G"), "places its memory itself"),
    ):
        assert reason in (driver.refusal(cell) or "")
