from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

import fivefold.conform.cases as cases_package
from fivefold.arch import Cpu
from fivefold.conform.cases.actions import ACTIONS, SLOT
from fivefold.conform.cases.case import MODES, Case, CaseError, impossible, make_case, parse_case
from fivefold.conform.cases.listing import listing
from fivefold.conform.cases.product import strata_in_turn, systematic
from fivefold.conform.cases.random_cases import random_case, random_cases
from fivefold.conform.cases.shrink import smaller
from fivefold.conform.judging.expect import expect
from fivefold.conform.judging.report import EVERYTHING, access_label
from fivefold.conform.judging.rules import rule_of
from fivefold.conform.run import choose_cases

FIRST = Path(cases_package.__file__).with_name("first.txt")
STRADDLE = "la57:write8:3:wp,nxe:fff00100443ffffc:pt=42ff005,pd2=0"


def sample() -> list[Case]:
    return [*systematic()[::97], *random_cases("test", range(600), tuple(MODES))]


def test_an_id_is_the_whole_case() -> None:
    for case in sample():
        assert parse_case(case.id) == case
        assert impossible(case) is None


def test_the_product_is_wide_and_each_case_is_in_it_once() -> None:
    cases = systematic()
    assert len(set(cases)) == len(cases) > 80_000
    assert {case.action for case in cases} == set(ACTIONS)
    assert {case.mode for case in cases[:200]} == set(MODES)


def test_random_cases_are_the_same_wherever_they_are_made() -> None:
    assert list(random_cases("7", range(40, 50), ("la48",))) == [random_case("7", n, "la48") for n in range(40, 50)]


def test_any_split_of_a_run_is_the_same_cases() -> None:
    whole = list(choose_cases(300, 5, ("la48", "la57")))
    parts = [
        case for start in (0, 100, 200) for case in choose_cases(300, 5, ("la48", "la57"), range(start, start + 100))
    ]
    assert parts == whole
    assert len(whole) == 300


def test_instructions_do_not_meet_in_the_code_page() -> None:
    assert max(len(action.code) for action in ACTIONS.values()) < SLOT - 3
    assert SLOT * len(ACTIONS) < 0xE00


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nonsense", "is no case"),
        ("la48:read8:0::0:", "slot 0"),
        ("la48:jump:0::7f8004200000:", "no action"),
        ("la48:read8:0:wp,foo:7f8004200000:", "no flag"),
        ("la48:read8:0::7f8004200000:pml5=1", "no entry"),
        ("la48:read8:0::7f8004200000:pt2=1", "no entry"),
        ("la48:invlpg:3::7f8004200000:", "privilege level 0"),
    ],
)
def test_what_is_no_case_is_refused(text: str, why: str) -> None:
    with pytest.raises(CaseError, match=why):
        parse_case(text)


def test_listing_names_what_is_out_of_the_ordinary() -> None:
    text = listing(parse_case(STRADDLE))
    assert "page-crossing write of 8 bytes at 0xfff00100443ffffc" in text
    assert "PD2    *" in text
    assert "PT     *  0x0000000004004ff8: 0x00000000042ff005  P US" in text


def test_smaller_cases_are_simpler() -> None:
    case = parse_case(STRADDLE)
    ids = {found.id for found in smaller(case)}
    assert "la57:write8:3:wp,nxe:fff00100443ffffc:pt=42ff005" in ids
    assert "la57:write8:3:nxe:fff00100443ffffc:pt=42ff005,pd2=0" in ids
    assert case.id not in ids


def test_what_a_cpu_lacks_is_said() -> None:
    case = make_case("la57", "read8", 0, ("wp", "nxe", "pks"), 0xFFF0_0100_4423_3128)
    assert expect(case, Cpu(pks=False)).hidden == "this CPU has no PKS"
    assert expect(case, Cpu(la57=False)).hidden == "this CPU has no LA57"
    assert expect(case, EVERYTHING).hidden is None


def test_the_second_page_shares_what_it_can() -> None:
    places = [slot.place for slot in parse_case("la48:read8:0::fffff80044233ffc:").path]
    assert places == ["pml4", "pdpt", "pd", "pt", "pt2"]
    places = [slot.place for slot in parse_case("la48:read8:0::fffff800443ffffc:").path]
    assert places == ["pml4", "pdpt", "pd", "pt", "pd2", "pt2"]
    assert len(list(islice(smaller(parse_case("la48:read8:0::fffff80044233ffc:")), 3))) == 0


def test_a_short_run_meets_every_rule() -> None:
    cases, first = systematic(), len(FIRST.read_text().splitlines())
    assert set(cases[:first]) <= set(strata_in_turn())
    shown = {rule for case in cases[:first] for rule in rules_of(case)}
    assert len(shown) > 150
    assert not {rule for case in cases[first::400] for rule in rules_of(case)} - shown


def rules_of(case: Case) -> set[tuple[str, str]]:
    """The rule that decides in *case*, with its kind of access, on an Intel CPU with everything, if it can be shown."""
    expected = expect(case, EVERYTHING)
    return set() if expected.hidden else {(rule_of(case, expected)[0], access_label(case))}
