"""Values that options take, and the one line for each that makes no sense."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from fivefold.cli import values
from fivefold.errors import FormatError
from fivefold.memory import parse_ram_map
from fivefold.survey.audit.policy import Policy

VECTORS = Path(__file__).with_name("vectors") / "values.txt"
PLACES: dict[str, Callable[[str], int | range]] = {
    "address": values.address,
    "size": values.size,
    "range": values.window,
}


def rows() -> list[list[str]]:
    lines = [line for line in VECTORS.read_text().splitlines() if line and not line.startswith("#")]
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def meaning(of: Callable[[str], int | range], word: str) -> str:
    try:
        found = of(word)
    except typer.BadParameter as error:
        return f"! {error}"
    return hex(found) if isinstance(found, int) else f"{found.start:#x}-{found.stop:#x}"


@pytest.mark.parametrize(("place", "word", "expected"), rows())
def test_what_a_word_means(place: str, word: str, expected: str) -> None:
    assert meaning(PLACES[place], word) == expected


@pytest.mark.parametrize(("word", "expected"), [row[1:] for row in rows() if row[0] == "range"])
def test_a_policy_reads_ranges_in_the_same_way(word: str, expected: str) -> None:
    text = f'''schema = "fivefold.policy/1"
[[except]]
rule = "wx-user"
reason = "a test"
range = "{word}"
'''
    try:
        window = Policy.parse(text, "p.toml").exceptions[0].window
    except FormatError as error:
        assert f"! {error}" == expected.replace("! ", "! p.toml: ", 1)
    else:
        assert window is not None and f"{window.start:#x}-{window.stop:#x}" == expected


def test_a_ram_map_reads_addresses_in_the_same_way() -> None:
    assert [tuple(span) for span in parse_ram_map("1000-9f000=0,1M-2M=0x9e000")] == [
        (0x1000, 0x9F000, 0),
        (0x10_0000, 0x20_0000, 0x9E000),
    ]


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "86401", "soon", ""])
def test_no_time_to_wait(text: str) -> None:
    with pytest.raises(typer.BadParameter) as caught:
        values.seconds(text)
    assert str(caught.value) == f"{text!r} is no time to wait; expected seconds, more than 0 and up to 86400"
    assert values.seconds("0.5") == 0.5
