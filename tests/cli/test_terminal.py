"""On a real terminal: what a guest, a log or a file's name holds never steers it, and colours are ours alone."""

from __future__ import annotations

import importlib.util
import io
import os
import pty
import re
import sys
import threading
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from rich.text import Text

from fivefold.cli.main import main
from fivefold.report.console import report_console
from fivefold.report.sheet import MARK, Sheet, paint

BENCH = Path(__file__).parents[2] / "bench"

ODD = "\x1b[35mA\x1b[8m\x9b35m\x07\x85\u202e\u2066\u200b\u061c\U000e0041<0123456789abcdef>[35m\x1b]0;x\x1b\\"
OURS_TEXT = re.compile(r"\x1b\[(?:0|1|2|32|33|36|1;31)m")
OURS = re.compile(OURS_TEXT.pattern.encode())
"""The codes of `report.sheet.STYLES`, and cyan of help pages. A guest's is magenta."""
UNWANTED = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\U000e0041]"
)
LOG = f"""{ODD} [    1.0] BUG: unable to handle page fault for address: ffff888000001000
{ODD} #PF: supervisor write access in kernel mode{ODD}
#PF: error_code(0x0002) - not-present page
CPU: 0 PID: 1 Comm: {ODD} Not tainted {ODD}
RIP: 0010:{ODD}+0x1/0x2
RSP: 0018:ffffc90000013e38 EFLAGS: 00010286
CR2: ffff888000001000 CR3: 0000000002a0a000 CR4: 00000000003506f0
"""

Terminal = Callable[..., bytes]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """Run a command whose standard output and error are a terminal; give what comes out of it."""
    master, slave = pty.openpty()
    tty.setraw(slave)

    def run(*words: object) -> bytes:
        came = bytearray()

        def drain() -> None:
            while not came.endswith(b"--end--"):
                came.extend(os.read(master, 1 << 16))

        reader = threading.Thread(target=drain, daemon=True)
        reader.start()
        with os.fdopen(os.dup(slave), "w", encoding="utf-8") as out, monkeypatch.context() as patch:
            for name in ("stdout", "stderr", "__stdout__", "__stderr__"):
                patch.setattr(f"sys.{name}", out)
            patch.delenv("NO_COLOR", raising=False)
            patch.setenv("TERM", "xterm")
            patch.setattr("sys.argv", ["fivefold", *map(str, words)])
            with pytest.raises(SystemExit):
                main()
            sys.stdout.flush()
            sys.stderr.flush()
        os.write(slave, b"--end--")
        reader.join(60)
        return bytes(came)

    yield run
    os.close(slave)
    os.close(master)


@pytest.fixture(scope="module")
def inputs() -> ModuleType:
    """The makers of hostile files."""
    spec = importlib.util.spec_from_file_location("hostile_inputs", BENCH / "hostile_inputs.py")
    assert spec and spec.loader
    module = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module


def check(came: bytes) -> None:
    """Nothing of the other side steers the terminal."""
    rest = OURS.sub(b"", came.replace(b"\r\x1b[K", b"")).decode()
    assert UNWANTED.findall(rest) == []
    assert MARK not in rest


SPELLED = rb"\x1b[35mA\x1b[8m\x9b35m"
COMMANDS = {
    "info": (),
    "walk": ("0xffffffff81000000", "0"),
    "dump": (),
    "audit": ("--all",),
    "stats": (),
    "roots": (),
    "find": ("--text", "A"),
    "diff": (),
    "layout": (),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_guest_does_not_steer_the_terminal(
    terminal: Terminal, inputs: ModuleType, tmp_path: Path, command: str
) -> None:
    text = f"OSRELEASE=6.1{ODD}\nSYMBOL(init_top_pgt)={ODD}\nBUILD-ID={ODD}\n{ODD}={ODD}\n"
    path = tmp_path / f"{ODD.replace('/', '')}.elf"
    path.write_bytes(inputs.guest(inputs.irregular(4), inputs.note(b"VMCOREINFO", 0, text.encode())))
    source = {"layout": ("--source", path), "diff": (path, path)}.get(command, (path,))
    came = terminal(command, *source, *COMMANDS[command])
    check(came)
    assert SPELLED in came or command != "info"
    assert OURS.search(came) or command not in ("walk", "dump", "audit", "stats")


@pytest.mark.parametrize("form", [(), ("--json",)], ids=str)
def test_nor_does_a_log(terminal: Terminal, tmp_path: Path, form: tuple[str, ...]) -> None:
    path = tmp_path / "a.log"
    path.write_text(LOG)
    came = terminal("explain", path, *form)
    check(came)
    assert b"ffff888000001000" in came
    assert bool(OURS.search(came)) == (not form)


def test_nor_a_serial_log(terminal: Terminal, tmp_path: Path) -> None:
    path = tmp_path / "serial"
    path.write_text(f"TAP version 14\n1..2\n{ODD}\nok 1 {ODD}\nnot ok 2 - x{ODD}\n# {ODD}\n")
    check(terminal("judge", path))


def test_help_is_coloured(terminal: Terminal) -> None:
    came = terminal("dump", "--help")
    check(came)
    assert b"\x1b[36m" in came


def test_an_error_names_a_file_without_its_controls(terminal: Terminal) -> None:
    came = terminal("info", f"no-such-file{ODD}")
    check(came)
    assert SPELLED in came


def test_a_report_by_rich_has_no_colours_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the result of a boot has them, in what the guest wrote."""
    monkeypatch.setenv("TERM", "xterm")
    out = io.StringIO()
    monkeypatch.setattr("fivefold.report.console.wants_color", lambda _: True)
    report_console(out, piped=400).print(Text(ODD, "bold red"), ODD)
    check(out.getvalue().encode())
    assert "\x1b[1;31m" in out.getvalue()


def test_a_colour_is_not_cut_in_two() -> None:
    """By a line of a word that is wider than the terminal."""
    out = io.StringIO()
    paper = Sheet(out, 40, color=True)
    for length in range(30, 60):
        paper.write("x" * length + paint(paper, "bad", "bad") + "y" * 50 + "\n")
    check(out.getvalue().encode())
    assert out.getvalue().count("\x1b[1;31m") == 30
    assert all(len(OURS_TEXT.sub("", line)) <= 40 for line in out.getvalue().splitlines())
