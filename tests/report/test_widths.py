"""Text reports at the widths of terminals, as they are pinned in ``vectors/widths.txt``, and their colours."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fivefold.cli.main import main
from fivefold.report import sheet as sheet_module
from fivefold.report.sheet import Sheet, fold, paint, wants_color

ROOT = Path(__file__).parents[2]
GUEST = "tests/data/guests/plain-la57-kaslr.elf.xz"
VECTORS = Path(__file__).with_name("vectors") / "widths.txt"
COMMANDS = [
    f"dump {GUEST} --range 400000-500000",
    f"walk {GUEST} 401000 1234",
    f"info {GUEST}",
    f"audit {GUEST}",
    f"stats {GUEST}",
    "layout --mode la57 --linux 6.1",
    f"find {GUEST} --phys 1eb98000",
    f"diff {GUEST} tests/data/guests/plain-la57-kaslr-smp2.elf.xz --range 0-500000",
    f"roots {GUEST}",
    f"explain --memory {GUEST} --cr2 401000 --error-code 7 --vector 14",
]
Print = Callable[..., str]


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Print:
    """Run a command of one line in this process, with other variables of the environment; what it prints."""

    def run(command: str, **environment: str) -> str:
        with monkeypatch.context() as patch:
            patch.chdir(ROOT)
            for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR"):
                patch.delenv(name, raising=False)
            for name, value in environment.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["fivefold", *command.split()])
            patch.setattr(sheet_module, "_color", "auto")
            with pytest.raises(SystemExit) as ended:
                main()
        done = capsys.readouterr()
        assert ended.value.code in (0, 1), done.err
        return done.out

    return run


def without_evidence(text: str) -> str:
    """*text* without the lines that say how things are known, and what they are folded into."""
    return re.sub(r"^(?:# |root ).*\n(?:    .*\n)*", "", text, flags=re.MULTILINE)


def pinned() -> dict[tuple[str, int], str]:
    parts = re.split(r"^== (\d+) (.*)\n", VECTORS.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {(command, int(width)): text for width, command, text in zip(*[iter(parts)] * 3, strict=True)}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split()[0])
def test_a_report_fits_the_terminal(command: str, printed: Print) -> None:
    whole = printed(command)
    for width in (40, 80, 200):
        text = printed(command, COLUMNS=str(width))
        assert max(map(len, text.splitlines())) <= width
        # Whatever is left out or folded, an address stays in one piece.
        if width >= 80:
            assert set(re.findall(r"0x[0-9a-f]{16}\b", text)) <= set(re.findall(r"0x[0-9a-f]{16}\b", whole))


@pytest.mark.parametrize(("command", "width"), pinned(), ids=lambda value: str(value).split()[0])
def test_a_report_is_as_pinned(command: str, width: int, printed: Print) -> None:
    name, *words = command.split()
    words = [GUEST if word == "GUEST" else word for word in words] if "GUEST" in words else [GUEST, *words]
    text = printed(" ".join((name, *words)), COLUMNS=str(width))

    assert without_evidence(text) == pinned()[command, width]


@pytest.mark.parametrize("command", COMMANDS[:4], ids=lambda command: command.split()[0])
def test_nothing_is_folded_or_coloured_in_a_pipe(command: str, printed: Print) -> None:
    assert "\x1b" not in printed(command)
    assert printed(command) == printed(command, COLUMNS="100000") or command.startswith("dump")


def test_colours_are_asked_for(printed: Print) -> None:
    command = f"audit {GUEST}"
    always = printed(f"{command} --color always")
    plain = re.sub("\x1b\\[[0-9;]*m", "", always)

    assert "\x1b[32mok      \x1b[0m" in always and plain == printed(command)
    assert printed(f"{command} --color always", NO_COLOR="1") == always  # what is typed goes before
    assert printed(f"{command} --color never") == plain


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("choice", "environment", "terminal", "wanted"),
    [
        ("auto", {}, True, True),
        ("auto", {}, False, False),
        ("auto", {"NO_COLOR": "1"}, True, False),
        ("auto", {"NO_COLOR": ""}, True, True),
        ("auto", {"TERM": "dumb"}, True, False),
        ("always", {"NO_COLOR": "1"}, False, True),
        ("never", {}, True, False),
    ],
)
def test_when_there_are_colours(
    choice: sheet_module.Color, environment: dict[str, str], terminal: bool, wanted: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sheet_module, "_color", choice)

    assert wants_color(Terminal() if terminal else io.StringIO()) is wanted


@pytest.mark.parametrize(
    ("line", "width", "expected"),
    [
        ("as it is", 40, "as it is"),
        ("one two three", 10, "one two\n    three"),
        ("  a bb ccc dddd", 10, "  a bb ccc\n      dddd"),
        ("name      the value of it", 40, "name      the value of it"),
        ("name   the value of it, long", 24, "name   the value of it,\n       long"),
        ("a  b   c", 6, "a  b\n    c"),
        ("0123456789abcdef", 10, "0123456789\n    abcdef"),
        ("0x12345678-0x9abcdef0", 16, "0x12345678-\n    0x9abcdef0"),
        ("ok  writable-code  that is writable", 20, "ok  writable-code\n    that is writable"),
        ("                 0123456789", 20, "      0123456789"),
    ],
)
def test_folding(line: str, width: int, expected: str) -> None:
    assert fold(line, width) == expected
    assert fold(line, None) == line


def test_a_coloured_name_is_hung_below_as_a_plain_one() -> None:
    out = io.StringIO()
    page = Sheet(out, 24, color=True)
    page.write(f"{paint(page, 'ok   ', 'good')} it is what it was, and so on\n")

    assert re.sub("\x1b[^m]*m", "", out.getvalue()) == "ok    it is what it was,\n      and so on\n"


def test_colours_take_no_columns() -> None:
    out = io.StringIO()
    page = Sheet(out, 12, color=True)
    page.write(f"{paint(page, 'refused', 'bad')} it is\n")

    assert out.getvalue() == "\x1b[1;31mrefused\x1b[0m it\n    is\n"
    assert paint(out, "refused", "bad") == "refused"


@pytest.mark.parametrize(
    ("style", "find"),
    [("rwx", "\x1b[1;31mrwx-\x1b[0m"), ("malformed", "\x1b[1;31m!! "), ("refused", "\x1b[1;31m-> entry not present")],
)
def test_what_matters_is_red(
    style: str, find: str, wrong_guest: Callable[[str], tuple[str, ...]], printed: Print
) -> None:
    assert find in printed(" ".join((*wrong_guest(style), "--color", "always")))


@pytest.fixture
def wrong_guest(tmp_path: Path) -> Callable[[str], tuple[str, ...]]:
    """A raw memory with four levels: a page that may be written and run, and an entry with a reserved bit."""

    def make(style: str) -> tuple[str, ...]:
        memory = bytearray(0x8000)
        for at, value in {
            0x1FF8: 0x2003,
            0x2FF8: 0x3003,
            0x3FF8: 0x4003,
            0x4000: 0x5003,
            0x4008: 1 << 51 | 0x6003,
        }.items():
            memory[at : at + 8] = value.to_bytes(8, "little")
        path = tmp_path / "memory.raw"
        path.write_bytes(memory)
        command = ("walk", str(path), "400000") if style == "refused" else ("dump", str(path))
        return (*command, "--cr3", "1000", "--levels", "4", "--phys-bits", "40")

    return make
