"""Words that make no sense: each is refused in one line that quotes it and names its option."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fivefold.cli.commands import COMMANDS, _Commands
from fivefold.cli.help_page import HelpfulCommand

Run = Callable[..., Any]
LEAKS = ("valid integer", "valid number", "unable to parse", "not in the range", "Value error")


def _refusals(name: str) -> list[str]:
    """The options of the command *name* that take a number."""
    command: HelpfulCommand = _Commands().get_command(None, name)
    return [
        max(one.opts, key=len)
        for one in command.params
        if one.metavar in ("N", "S", "BITS", "4|5", "0..3", "SECONDS", "SIZE") and one.opts[0].startswith("-")
    ]


@pytest.mark.parametrize("word", ["five", "", "0x1z", "1.5.2", "٣"])
@pytest.mark.parametrize(("name", "option"), [(name, option) for name in COMMANDS for option in _refusals(name)])
def test_a_number_that_is_none_is_quoted_beside_its_option(name: str, option: str, word: str, fivefold: Run) -> None:
    done = fivefold(name, option, word)

    assert (done.status, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith(f"fivefold: Invalid value for '{option}': {word!r} is ")
    assert "; expected " in done.err
    assert not any(leak in done.err for leak in LEAKS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("info", "x", "--cpu", "0x1"), "'--cpu': '0x1' is no count; expected a decimal number from 0 on"),
        (("info", "x", "--cpu", "-1"), "'--cpu': '-1' is out of range; expected a number from 0 on"),
        (("info", "x", "--levels", "five"), "'--levels': 'five' is no count; expected a decimal number, 4 or 5"),
        (("info", "x", "--levels", "6"), "'--levels': '6' is out of range; expected a number, 4 or 5"),
        (("diff", "x", "y", "--other-levels", "3"), "'--other-levels': '3' is out of range; expected a number, 4 or 5"),
        (("info", "x", "--phys-bits", "99"), "'--phys-bits': '99' is out of range; expected a number from 32 to 52"),
        (("info", "x", "--c-bit", "3"), "'--c-bit': '3' is out of range; expected a number from 32 to 51"),
        (("find", "x", "--limit", "0"), "'--limit': '0' is out of range; expected a number from 1 on"),
        (("vectors", "--count", "x"), "'--count': 'x' is no count; expected a decimal number from 1 to 1000000"),
        (("explain", "--cpl", "9"), "'--cpl': '9' is out of range; expected a number from 0 to 3"),
        (("boot", "--memory", "0"), "'--memory': '0' is a size without a unit: 0x0 is 0 bytes; expected this, or K"),
        (("layout", "zz"), "'ADDRESS': 'zz' is not an address; expected hexadecimal"),
        (("walk", "x", "zz"), "'ADDRESS': 'zz' is not an address; expected hexadecimal"),
        (("info", "x", "--live-ram", "pmemsav"), "'--live-ram': 'pmemsav' is not one of 'auto', 'file', 'process'"),
    ],
)
def test_a_value_that_cannot_be(words: tuple[str, ...], said: str, fivefold: Run) -> None:
    done = fivefold(*words)
    assert (done.status, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith(f"fivefold: Invalid value for {said}")


def test_the_nearest_of_several_values(fivefold: Run) -> None:
    assert fivefold("info", "x", "--live-ram", "pmemsav").err.endswith("; did you mean pmemsave?\n")
    assert "did you mean" not in fivefold("info", "x", "--live-ram", "zzz").err


def test_counts_are_decimal_with_underscores(fivefold: Run) -> None:
    plain = fivefold("vectors", "--count", "1_0", "--seed", "-7")
    assert plain.status == 0 and plain.out == fivefold("vectors", "--count", "10", "--seed", "-7").out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--color", "never"), "--color goes after the command: fivefold COMMAND --color"),
        (("--color=never", "dump"), "--color goes after the command: fivefold COMMAND --color"),
        (("--ram-map", "x", "dump"), "--ram-map goes after the command: fivefold COMMAND --ram-map"),
        (("--zzz",), "No such option: --zzz"),
        (("--install-completion", "xsh"), "--install-completion is for the shell that it is called from; expected it"),
        (("--show-completion", "bash"), "--show-completion is for the shell that it is called from; expected it alone"),
    ],
)
def test_options_before_the_command(
    words: tuple[str, ...], said: str, fivefold: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    done = fivefold(*words)

    assert (done.status, done.out, done.err.count("\n")) == (2, "", 1)
    # click words a missing option in two ways, by its version.
    assert done.err.replace("option '", "option: ").startswith(f"fivefold: {said}")
    assert not list(tmp_path.iterdir())


def test_an_instruction_that_no_shell_gives(fivefold: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_FIVEFOLD_COMPLETE", "foo")
    done = fivefold()
    assert (done.status, done.out) == (2, "")
    assert done.err == (
        "fivefold: _FIVEFOLD_COMPLETE is 'foo'; expected complete_ or source_ and a shell: complete_bash\n"
    )


@pytest.mark.parametrize("words", [("info",), ("walk", "ffffffff81000000"), ("dump", "--kernel"), ("stats",)])
def test_a_file_of_symbols_is_refused_before_anything_is_printed(
    words: tuple[str, ...], fivefold: Run, capture: Callable[[str], Path], tmp_path: Path
) -> None:
    command, *more = words
    done = fivefold(command, capture("plain-la48-kaslr"), *more, "--symbols", tmp_path / "none")

    assert (done.status, done.out) == (2, "")
    assert "none: No such file or directory" in done.err and done.err.count("\n") == 1


def test_a_slip_on_the_kernels_command_line_is_told() -> None:
    from fivefold.boot.command_line import near_word

    assert [near_word(word) for word in ("nolvl5", "kalsr=5", "page=4k", "quiet", "root=/dev/sda")] == [
        "no5lvl",
        "kaslr=5",
        "pages=4k",
        "",
        "",
    ]


@pytest.mark.parametrize(
    "words", ["matrix --presett quick k", "matrix", "--bogus matrix k", "matirx k", "matrix /none"]
)
def test_a_mistyped_bisection_stops_git(words: str, fivefold: Run) -> None:
    """It takes 2 for a bad commit, and would blame one."""
    assert fivefold(*words.split()).status == 2
    told = fivefold(*words.split(), "--bisect")
    assert told.status == 128 and told.err.startswith("fivefold: ")


@pytest.mark.parametrize(("option", "status"), [("--json", 2), ("--bisect", 128)])
def test_a_dry_run_gives_no_verdict(option: str, status: int, fivefold: Run) -> None:
    told = fivefold("matrix", "--dry-run", option, "k")
    assert told.status == status and told.err == f"fivefold: {option} is about boots, and --dry-run boots nothing\n"


@pytest.mark.qemu
@pytest.mark.parametrize("option", ["--keep", "--html", "--junit"])
def test_what_cannot_be_written_is_refused_before_the_first_boot(option: str, tmp_path: Path, fivefold: Run) -> None:
    kernel, taken = tmp_path / "kernel", tmp_path / "taken"
    kernel.write_text("text")
    taken.write_text("text")
    told = fivefold("matrix", kernel, option, taken / "x")
    assert told.status == 2 and told.err.startswith(f"fivefold: cannot write {taken}/x: ") and "booted" not in told.err
