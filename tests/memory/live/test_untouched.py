"""A large guest that has touched little of its memory, read from QEMU's process."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fivefold.machine import available
from fivefold.machine.child import Child
from fivefold.memory import open_source
from fivefold.units import GIB, MIB

pytestmark = pytest.mark.qemu


def test_what_was_never_touched_is_not_copied(tmp_path: Path, listens: Callable[[Path], bool]) -> None:
    """16 GiB, of which QEMU loaded a mebibyte and its firmware: all is readable, next to nothing is copied."""
    if (reason := available("qemu")) is not None:
        pytest.skip(reason)
    data = bytes(range(256)) * 4096
    (tmp_path / "data").write_bytes(data)
    command = ["qemu-system-x86_64", "-accel", "tcg", "-M", "q35", "-m", "16G", "-S", "-display", "none", "-nodefaults"]
    command += ["-device", f"loader,file={tmp_path / 'data'},addr={8 * GIB:#x},force-raw=on"]
    child = Child([*command, "-qmp", f"unix:{tmp_path / 'qmp'},server=on,wait=off"], ())
    try:
        deadline = time.monotonic() + 60
        while not listens(tmp_path / "qmp") and time.monotonic() < deadline:
            time.sleep(0.05)
        with open_source(f"qmp:{tmp_path / 'qmp'}", live_ram="process", max_copy=64 * MIB) as source:
            written = source.memory.written()
            assert any(run.start <= 8 * GIB and run.end >= 8 * GIB + MIB for run in written)
            assert sum(run.end - run.start for run in written) < 64 * MIB
            last = source.memory.banks()[-1]
            assert last.start <= 4 * GIB and last.end == 18 * GIB
            at = 8 * GIB - last.start
            assert bytes(last.data[at : at + MIB]) == data
            assert last.data[-4096:] == bytes(4096)
    finally:
        child.end()
