"""Every command and every piece of Python that a page shows runs, and prints what is shown.

They run in the order of the page, in a folder that has the repository's `tests`, the captures, and the few files that
the pages' names stand for. A command that needs a program is skipped by name where it is missing, and fails where CI
requires all of them.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
GUESTS = ROOT / "tests/data/guests"
LONGEST = 300
"""Seconds; the machine that this runs on has other work to do."""
EXIT_DEVICE = "isa-debug-exit"
ENOUGH = 50
"""Checks that pass on the serial port; the image makes more than a hundred."""
STATUS_1 = r"--other-c|--relative|guest\.raw|--cmdline fault=|\| grep"
"""Commands that end with status 1 on what they are shown with: spaces that differ, bytes that are mapped nowhere, a
boot that fails on purpose, and `grep` where nothing fails."""
OF_THE_KERNEL = ("kernel/selftest/checks.py", "boot/judge/judge.py")
"""Files that docs/checks.md shows lines of."""
KERNEL = "".join((ROOT / "src/fivefold" / name).read_text() for name in OF_THE_KERNEL)

STAND_FOR = {
    "guest.elf.xz": "plain-la57-kaslr-smp2",
    "before.elf.xz": "plain-la57-kaslr",
    "after.elf.xz": "plain-la57-kaslr",
    "before.elf": "plain-la57-kaslr",
    "after.elf": "plain-la57-kaslr-smp2",
    "boot1.elf": "plain-la57-kaslr",
    "boot2.elf": "plain-la57-kaslr-smp2",
    "vmcore": "plain-la57-kaslr",
    "memory.img": "plain-la57-kaslr",
}
"""Names that the pages use for a reader's own captures."""
NEEDS = {
    "qemu-system-x86_64": r"\bqemu-system|--engine qemu|--smp|--entry efi|--cmdline fault=",
    "man": r"\| man ",
    "grub-mkrescue": r"--format iso|\.iso\b",
    "xorriso": r"--format iso|\.iso\b",
    "mformat": r"--format iso|\.iso\b",
}
"""Programs, and the commands that need them."""
FIRMWARE = r"--entry efi|OVMF"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the pages name."""
    here = tmp_path_factory.mktemp("pages")
    (here / "tests").symlink_to(ROOT / "tests")
    for path in GUESTS.glob("*.elf.xz"):
        (here / path.name).symlink_to(path)
    for name, guest in STAND_FOR.items():
        (here / name).symlink_to(GUESTS / f"{guest}.elf.xz")
    (here / "System.map").write_text("ffffffff81000000 T _text\nffffffff81000020 T start\n")
    (here / "qemu.log").symlink_to(ROOT / "tests/data/faults/rsvd_pte.log")
    audit = (ROOT / "docs/audit.md").read_text()
    (here / "policy.toml").write_text(audit.partition("```toml\n")[2].partition("```")[0])
    (here / "guest.raw").write_bytes(
        bytes(0x3000) + b"root:x:0:0" + bytes(0x1000) + bytes.fromhex("6700c01e00000000") + bytes(0x1000)
    )
    return here


def skip_without(text: str) -> None:
    """Skip, or fail where CI requires it, if *text* needs what is not here."""
    missing = [name for name, needs in NEEDS.items() if re.search(needs, text) and shutil.which(name) is None]
    if re.search(FIRMWARE, text) and not any(Path("/usr/share").glob("[oO][vV][mM][fF]/OVMF*.fd")):
        missing.append("ovmf")
    if missing:
        reason = f"needs {', '.join(missing)}, which is not there"
        if os.environ.get("FIVEFOLD_REQUIRE_QEMU"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


def status_of(text: str) -> int:
    """The status that the comment beside a command promises, else 0, or 1 where that is what is shown."""
    said = re.search(r"#.*status (\d+)", text)
    return int(said[1]) if said else int(bool(re.search(STATUS_1, text)))


def run(text: str, place: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as the shell of a reader would, in a session of its own; none of its processes outlives it."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    child = subprocess.Popen(
        ["bash", "-c", text],
        cwd=place,
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = child.communicate(timeout=LONGEST)
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
    return subprocess.CompletedProcess(text, child.returncode, out, err)


def until_it_has_booted(text: str, place: Path) -> str:
    """Run a machine that never powers off until a check fails or enough have passed; return what it said."""
    child = subprocess.Popen(
        ["bash", "-c", f"exec {text.partition('#')[0]}"],
        cwd=place,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        errors="replace",
    )
    said = ""
    assert child.stdout is not None
    watch = threading.Timer(LONGEST, child.kill)
    watch.start()
    try:
        for line in child.stdout:
            said += line
            if line.startswith("not ok") or said.count("\nok ") >= ENOUGH:
                break
    finally:
        watch.cancel()
        child.kill()
        child.wait()
        child.stdout.close()
    return said


def test_a_command_runs(command: Any, place: Path) -> None:
    skip_without(command.text)
    if command.text.startswith("qemu-system") and EXIT_DEVICE not in command.text:
        said = until_it_has_booted(command.text, place)
        assert "levels of page tables" in said and said.count("\nok ") >= ENOUGH, said[-2000:]
        return
    done = run(command.text, place)

    assert done.returncode == status_of(command.text), done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    if command.shown is not None:
        compare(command.shown, [line.rstrip() for line in done.stdout.splitlines()])


def compare(shown: tuple[str, ...], printed: list[str]) -> None:
    """Each shown line is printed, in this order; "…" stands for lines, or for the rest of a line, that are left out."""
    left = iter(printed)
    missing = [line for line in shown if line != "…" and not any(matches(line, told) for told in left)]
    assert missing == []
    assert "…" in shown or [told for told in printed if told] == [line for line in shown if line]


def matches(shown: str, told: str) -> bool:
    return told.startswith(shown[:-1].rstrip()) if shown.endswith("…") else told == shown.rstrip()


def test_a_snippet_runs(snippet: Any, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n".join(snippet.lines)
    if text.startswith(">>> "):
        pytest.skip("tests/arch/test_docs.py runs it")
    if parts := of_the_kernel(text):
        assert [part for part in parts if part not in KERNEL] == []
        return
    monkeypatch.chdir(place)
    exec(compile(text, "the page", "exec"), {})


def of_the_kernel(text: str) -> list[str]:
    """The calls of a snippet that shows lines of the checks themselves, which run in a guest; else none."""
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    return lines if lines[0].startswith(("refuses(", "yield ")) else []
