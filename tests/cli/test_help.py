"""The help of every command, the man page, and what is said to a wrong name."""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fivefold.cli.commands import COMMANDS, _Commands
from fivefold.cli.examples import EXAMPLES
from fivefold.cli.help_page import _choices, description
from fivefold.cli.man_page import man_page

Run = Callable[..., Any]
TYPES = re.compile(r"<(str|int|float|path|list|bool)|list\[|\b(INTEGER|FLOAT|BOOLEAN)\b")


@pytest.mark.parametrize("width", [40, 80, 120, 200])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_the_terminal_and_names_no_python_type(
    name: str, width: int, fivefold: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    page = fivefold(name, "-h").out

    assert max(map(len, page.splitlines())) <= width
    assert not TYPES.search(page)
    assert page == fivefold(name, "--help").out == fivefold("help", name).out
    for heading in ("Usage:", "General", "EXAMPLES"):
        assert page.count(heading) == 1, heading


@pytest.mark.parametrize("name", ["info", "walk", "dump", "audit", "diff", "find", "stats", "view", "roots"])
def test_options_of_the_source_are_in_a_panel_of_their_own(
    name: str, fivefold: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    page = fivefold(name, "-h").out
    before, _, source = page.partition("─ Source ─")

    assert "--ram-map" in source and "--ram-map" not in before
    assert source.index("--ram-map") < source.index("─ General ─") < source.index("--color")


def test_every_command_has_examples_and_they_are_its_own() -> None:
    assert set(EXAMPLES) == set(COMMANDS)
    for name, rows in EXAMPLES.items():
        for line, text in rows:
            words = shlex.split(line)
            at = words.index("fivefold")
            assert words[at + 1] == name and text, line


FILES = {"guest.elf.xz": "plain-la57-kaslr", "before.elf": "plain-la57-kaslr", "after.elf": "plain-la57-kaslr-smp2"}
TRIED = ["info", "walk", "dump", "audit", "diff", "find", "stats", "layout", "view"]


@pytest.mark.parametrize("line", [row[0] for name in TRIED for row in EXAMPLES[name] if "pid:" not in row[0]])
def test_examples_run(line: str, fivefold: Run, capture: Callable[[str], Path], tmp_path: Path,
                      monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    for name, guest in {**FILES, "one.elf": "plain-la57-kaslr", "other.elf": "plain-la57-kaslr-smp2"}.items():
        (tmp_path / name).symlink_to(capture(guest))
    (tmp_path / "policy.toml").write_text('schema = "fivefold.policy/1"\n')
    monkeypatch.chdir(tmp_path)
    done = fivefold(*shlex.split(line)[1:])

    assert done.status in (0, 1), done.err
    assert done.out


def test_the_man_page_has_every_option_of_every_command(fivefold: Run) -> None:
    page = fivefold("--man").out
    for name in COMMANDS:
        part = page.partition(f'.SH "FIVEFOLD {name.upper()}"')[2].partition(".SH ")[0].replace(r"\-", "-")
        shown = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", fivefold(name, "-h").out))
        assert shown <= set(re.findall(r"--[a-z][a-z0-9-]+", part)), name


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_the_man_page_is_sound_roff(fivefold: Run) -> None:
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8"], input=fivefold("--man").out, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_line_of_the_man_page_is_no_request() -> None:
    class Group:
        params: tuple[object, ...] = ()
        help = ".so /etc/passwd\n\n'quoted \\n"

        def get_command(self, context: object, name: str) -> Group:
            return self

    page = man_page(Group(), {"boot": "x"})
    assert "\n.so" not in page and "\n\\&.so /etc/passwd\n" in page and "\n\\&'quoted \\en\n" in page


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("dmup", "there is no command 'dmup'; did you mean dump?"),
        ("explane", "there is no command 'explane'; did you mean explain?"),
        ("wlak", "there is no command 'wlak'; did you mean walk?"),
        ("xyzzy", "there is no command 'xyzzy'; expected one of boot, image, "),
        ("DUMP", "there is no command 'DUMP'; expected one of boot, image, "),
    ],
)
def test_a_name_that_is_no_command(word: str, said: str, fivefold: Run) -> None:
    done = fivefold(word)
    assert (done.status, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith(f"fivefold: {said}")


def test_help_of_all(fivefold: Run) -> None:
    page = fivefold("-h").out
    assert page == fivefold("--help").out == fivefold("help").out
    assert all(name in page for name in COMMANDS)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_commands_and_options(shell: str) -> None:
    def completed(line: str, count: int) -> str:
        environment = {**os.environ, "_FIVEFOLD_COMPLETE": f"complete_{shell}", "COMP_WORDS": line,
                       "COMP_CWORD": str(count), "_TYPER_COMPLETE_ARGS": line,
                       "_TYPER_COMPLETE_FISH_ACTION": "get-args"}  # fmt: skip
        program = "import sys; sys.argv = ['fivefold']; from fivefold.cli.main import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60
        )
        assert "Traceback" not in done.stderr
        return done.stdout

    assert "dump" in completed("fivefold du", 1)
    assert "--ram-map" in completed("fivefold dump --ram", 2)


def test_a_source_from_a_pipe(capture: Callable[[str], Path]) -> None:
    program = "import sys; sys.argv = ['fivefold', 'info', '-']; from fivefold.cli.main import main; main()"
    with capture("plain-la57-kaslr").open("rb") as file:
        by_file = subprocess.run([sys.executable, "-c", program], stdin=file, capture_output=True, timeout=60)
    data = capture("plain-la57-kaslr").read_bytes()
    piped = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, timeout=60)

    assert piped.returncode == by_file.returncode == 0
    assert piped.stdout == by_file.stdout
    assert piped.stdout.startswith(b"source           standard input\n")
    empty = subprocess.run([sys.executable, "-c", program], input=b"", capture_output=True, timeout=60)
    assert (empty.returncode, empty.stderr) == (
        2,
        b"fivefold: standard input is empty; expected a file that holds memory\n",
    )


def test_output_to_standard_output(
    capture: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "import sys; sys.argv = ['fivefold', *sys.argv[1:]]; from fivefold.cli.main import main; main()"
    words = [sys.executable, "-c", program, "view", str(capture("plain-la57-kaslr")), "-o"]
    page = subprocess.run([*words, "-"], capture_output=True, timeout=60, cwd=tmp_path)
    subprocess.run([*words, "page.html"], capture_output=True, timeout=60, cwd=tmp_path)

    assert (page.returncode, page.stdout) == (0, (tmp_path / "page.html").read_bytes())
    assert page.stderr == f"fivefold: standard output: {len(page.stdout)} bytes\n".encode()
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_width_is_of_the_stream_that_is_printed_to(monkeypatch: pytest.MonkeyPatch) -> None:
    from fivefold.report.console import columns_of

    monkeypatch.delenv("COLUMNS", raising=False)
    assert columns_of(io.StringIO()) is None
    monkeypatch.setenv("COLUMNS", "132")
    assert columns_of(io.StringIO()) == 132
    monkeypatch.setenv("COLUMNS", "wide")
    assert columns_of(io.StringIO()) is None


@pytest.mark.parametrize("name", COMMANDS)
def test_help_in_a_pipe_is_whole(name: str, fivefold: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    piped = fivefold(name, "-h").out
    monkeypatch.setenv("COLUMNS", "80")

    assert piped == fivefold(name, "-h").out
    words = " ".join(piped.split())
    for paragraph in description(_Commands().get_command(None, name)):
        assert " ".join(paragraph.split()) in words


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_breaks_no_word(name: str, width: int, fivefold: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    page = fivefold(name, "-h").out
    assert set(re.findall(r"\S*…", page)) <= {
        "wp=1,…",
        "START-END[=OFFSET],…",
        "0-0xa0000,0x100000-…",
        "cr0.wp=0,…",
        "…",
    }
    shown = set(re.findall(r"[\w-]+", page))
    for parameter in _Commands().get_command(None, name).params:
        assert {option for option in parameter.opts if option.startswith("-")} <= shown
        assert set(_choices(parameter)) <= shown


def test_a_terminal_that_does_not_know_its_size_has_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    from fivefold.report.sheet import columns_of

    class Terminal(io.StringIO):
        def fileno(self) -> int:
            return 1

        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("COLUMNS", raising=False)
    for columns, seen in ((0, 80), (1, 40), (100, 100)):
        monkeypatch.setattr(os, "get_terminal_size", lambda _, columns=columns: os.terminal_size((columns, 0)))
        assert columns_of(Terminal()) == seen
