# SPDX-License-Identifier: LicenseRef-VSL-1.0
"""volatility3 itself on dumps of a booted Debian, five levels and four, against what that Debian said of itself.

The symbols are made from the dump alone.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.qemu

five_levels = pytest.mark.parametrize("guest", ["6.1-la57", "6.12-la57"], indirect=True)
"""What says the same of four levels, where volatility3's own layer is used, and costs seconds a guest."""

MAIN = "from fivefold.cli.main import main; main()"
VOL = "import sys; from volatility3.cli import main; sys.argv[0] = 'vol'; main()"
MANY = Path(__file__).with_name("many_plugins.py")
GONE = {"busybox", "cat", "ps", "dd", "init", "sh", "1"}
"""What wrote the list of processes and had ended when memory was dumped."""


def run(*words: object, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, timeout=600, **more)


@pytest.fixture(scope="module")
def given(guest: Any, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What `fivefold volatility` prints for the guest's dump."""
    done = run(sys.executable, "-c", MAIN, "volatility", guest.elf, "--output", tmp_path_factory.mktemp("symbols"))
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"-p \S+ -s \S+\n", done.stdout)
    return done.stdout.split()


@pytest.fixture(scope="module")
def plugins(guest: Any, given: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What many plug-ins of volatility3 answer to the ELF dump, each as rows by the names of their columns."""
    wanted = ["pslist.PsList", "pstree.PsTree", "lsmod.Lsmod", "psaux.PsAux", "proc.Maps", "kmsg.Kmsg"]
    wanted += ["malware.check_syscall.Check_syscall", "malware.check_idt.Check_idt"]
    cache = tmp_path_factory.mktemp("cache")
    done = run(sys.executable, MANY, f"file://{guest.elf}", given[1], given[3], cache, *wanted)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def listed(text: str) -> Iterator[list[str]]:
    """The rows of the guest's ``ps``, split."""
    for line in text.splitlines():
        if line.split()[:1] not in ([], ["PID"]):
            yield line.split(None, 2)


def test_pslist_is_the_guests_ps(guest: Any, given: list[str], tmp_path: Path) -> None:
    """By the command line, from a dump that only fivefold reads: every process with its parent, and no other."""
    done = run(
        *(sys.executable, "-c", VOL, "-q", "-r", "json", "--cache-path", tmp_path, "-f", guest.kdump),
        *(*given, "linux.pslist"),
    )
    assert done.returncode == 0, done.stderr
    ours = {row["PID"]: (row["PPID"], row["COMM"]) for row in json.loads(done.stdout)}
    theirs = {int(pid): (int(parent), name.strip()) for pid, parent, name in listed(guest.processes)}
    assert len(ours) > 20 and ours.keys() <= theirs.keys()
    for pid, (parent, name) in ours.items():
        assert theirs[pid][0] == parent and (theirs[pid][1].startswith(name[:15]) or pid == 1), pid
    assert {name for pid, (_, name) in theirs.items() if pid not in ours} <= GONE


@five_levels
def test_pstree_and_arguments(guest: Any, plugins: dict[str, list[dict[str, Any]]]) -> None:
    """The tree has the same processes, and each user's arguments are what the guest printed."""
    assert {row["PID"] for row in plugins["pstree.PsTree"]} == {row["PID"] for row in plugins["pslist.PsList"]}
    arguments = {row["PID"]: row["ARGS"] for row in plugins["psaux.PsAux"]}
    theirs = {int(pid): args for pid, args, *_ in (line.split(None, 1) for line in lines(guest.arguments))}
    sleeper = next(pid for pid, args in theirs.items() if args == "/bin/busybox sleep 9998")
    assert arguments[sleeper] == "/bin/busybox sleep 9998"
    assert arguments[1] == "/bin/busybox sleep 9999"


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip() and not line.split()[0].startswith("PID")]


@five_levels
def test_modules(guest: Any, plugins: dict[str, list[dict[str, Any]]]) -> None:
    """Names are those of /proc/modules, in its order."""
    assert [row["Module Name"] for row in plugins["lsmod.Lsmod"]] == [line.split()[0] for line in lines(guest.modules)]


@five_levels
def test_maps_of_a_process(guest: Any, plugins: dict[str, list[dict[str, Any]]]) -> None:
    """Each area of the process that sleeps has its bounds and rights in /proc/PID/maps, and no other."""
    sleeper = next(row["PID"] for row in plugins["psaux.PsAux"] if row["ARGS"] == "/bin/busybox sleep 9998")
    ours = [(row["Start"], row["End"], row["Flags"]) for row in plugins["proc.Maps"] if row["PID"] == sleeper]
    theirs = [line.replace("-", " ", 1).split() for line in lines(guest.maps) if "[vsyscall]" not in line]
    assert len(ours) > 4
    assert ours == [(int(start, 16), int(end, 16), rights[:3]) for start, end, rights, *_ in theirs]


@five_levels
def test_system_calls_lead_to_their_functions(guest: Any, plugins: dict[str, list[dict[str, Any]]]) -> None:
    """Each handler's name and address are a line of the guest's own /proc/kallsyms."""
    theirs = {(line.split()[0], line.split()[2]) for line in lines(guest.kallsyms)}
    rows = [row for row in plugins["malware.check_syscall.Check_syscall"] if row["Table Name"] == "64bit"]
    assert len(rows) > 300
    for row in rows[:300]:
        address = row["Handler Address"]
        address |= -(address >> (56 if guest.levels == 5 else 47)) << 48  # volatility's addresses have no sign
        assert (f"{address & (1 << 64) - 1:016x}", row["Handler Symbol"]) in theirs, row


@pytest.mark.parametrize("guest", ["6.1-la57"], indirect=True)
def test_a_live_guest(guest: Any, tmp_path: Path) -> None:
    """`-f` is printed for what is no file."""
    done = run(sys.executable, "-c", MAIN, "volatility", f"qmp:{guest.qmp}", "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert words[0] == "-f"
    done = run(
        *(sys.executable, "-c", VOL, "-q", "-r", "json", "--cache-path", tmp_path, *words, "linux.lsmod"),
        env={**os.environ, "FIVEFOLD_PYTHON": sys.executable},
    )
    assert done.returncode == 0, done.stderr
    assert [row["Module Name"] for row in json.loads(done.stdout)] == [line.split()[0] for line in lines(guest.modules)]
