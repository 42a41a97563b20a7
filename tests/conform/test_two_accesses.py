"""Cases that make an access twice: what the second must do, and what an engine that errs shows."""

from __future__ import annotations

import pytest

from fivefold.arch import Cpu
from fivefold.conform.cases.case import impossible, parse_case
from fivefold.conform.cases.product_steps import twice
from fivefold.conform.engines.unicorn_cpu import UnicornEngine
from fivefold.conform.judging.expect import expect
from fivefold.conform.judging.outcome import CaseOutcome, checks
from fivefold.conform.judging.rules import CHANGED, rule_of
from fivefold.conform.run import run_cases

CPU = Cpu(phys_bits=40)
USER = 0x7A80_4423_3128


@pytest.mark.parametrize(
    ("case", "vector", "code", "title"),
    [
        ("thenwp:0::{va}:pt=4333005", 14, 3, "CR0.WP counts as it is"),
        ("thenwp:0:wp:{va}:pt=4333005", 14, 3, "write to a read-only page"),
        ("thensmap:0::{va}:", 14, 1, "CR4.SMAP counts"),
        ("thensmap:0:smap:{va}:", 14, 1, "SMAP: supervisor access"),
        ("thenac:0:smap,ac:{va}:", 14, 1, "RFLAGS.AC counts"),
        ("thenac:0:ac:{va}:", 3, 0, "RFLAGS.AC counts"),
        ("thenpkru:3:pke:{va}:pt=2800000004333007", 14, 0x27, "PKRU counts"),
        ("thenpkru:3:pke:{va}:pt=2800000004333007,pkru=c00", 14, 0x27, "PKU: the protection key"),
        ("thenpkrs:0:wp,pks:{va}:pt=2800000004333003", 14, 0x23, "IA32_PKRS counts"),
        ("thenwrite:3:wp:{va}:pt=4333005", 14, 7, "write to a read-only page"),
        ("thenclean:0:wp:{va}:", 3, 0, "access that the rights allow"),
    ],
)
def test_the_second_access_is_held_against_todays_registers(case: str, vector: int, code: int, title: str) -> None:
    parsed = parse_case("la48:" + case.format(va=f"{USER:x}"))
    expected = expect(parsed, CPU)
    assert (expected.vector, expected.error_code) == (vector, code)
    assert rule_of(parsed, expected)[0].startswith(title)


def test_an_engine_that_keeps_the_old_right_differs() -> None:
    case = parse_case(f"la48:thenwp:0::{USER:x}:pt=4333005")
    wrong = [check.rule for check in checks(case, expect(case, CPU), CaseOutcome(3)) if not check.agrees]
    assert wrong == ["CR0.WP counts as it is at the access, whatever was cached before it changed"]


def test_d_that_is_not_set_again_is_seen() -> None:
    case = parse_case(f"la48:thenclean:0:wp:{USER:x}:")
    expected = expect(case, CPU)
    after = {part.at: part.before | part.must for part in expected.histories}
    assert all(check.agrees for check in checks(case, expected, CaseOutcome(3, after=after)))
    after[max(after)] &= ~(1 << 6)
    wrong = [check.rule for check in checks(case, expected, CaseOutcome(3, after=after)) if not check.agrees]
    assert wrong == ["A and D are set again after software cleared them, and INVLPG"]


def test_the_lower_page_of_a_write_that_the_upper_refuses_may_become_dirty_after_a_read() -> None:
    """Bochs' CPU as a library does it."""
    expected = expect(parse_case("la48:thenwrite:3:wp:fffff80044233ffc:pt2=4334005"), CPU)
    leaf = next(part for part in expected.histories if part.at == 0x400_3198)
    assert (expected.vector, leaf.must, leaf.may) == (14, 1 << 5, 1 << 6)


def test_unicorn_agrees() -> None:
    cases = [case for _, case in twice() if impossible(case) is None][::11]
    report = run_cases(UnicornEngine(), cases)
    assert report.cases > 200
    assert not report.differing
    shown = {key.rule.partition(" counts")[0] for key, row in report.rows.items() if row.agrees}
    assert shown >= set(CHANGED.values()) - {"IA32_PKRS"}


def test_a_wrong_outcome_of_a_tss_read_is_an_implicit_access() -> None:
    case = parse_case(f"la48:ist:0:wp,smap,ac:{USER:x}:")
    expected = expect(case, CPU)
    assert (expected.vector, expected.error_code, expected.cr2) == (14, 1, USER)
    went_ahead = CaseOutcome(3, after={part.at: part.before | part.may for part in expected.histories})
    wrong = [check.rule for check in checks(case, expected, went_ahead) if not check.agrees]
    assert wrong == ["SMAP: implicit supervisor access to a user page faults whatever RFLAGS.AC is"]
