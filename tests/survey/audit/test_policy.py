"""Policy files: what they say, and what is said where they are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from fivefold.errors import FormatError
from fivefold.survey.audit.policy import LINUX_EXCEPTIONS, MAX_FILE, Policy, load_policy
from fivefold.survey.audit.rules import BY_NAME, RULES, Severity
from fivefold.symbols import Symbols, SymbolSpan

HEAD = 'schema = "fivefold.policy/1"\n'
FULL = (
    HEAD
    + """
defaults = false
[rules]
wx-user = "off"
global-user-page = "error"
[[except]]
rule = "memory-type-conflict"
reason = " frame buffer "
phys = "0xfd000000-0xfe000000"
range = "0xff6d7d5040000000+16M"
area = "vmalloc"
"""
)


def test_a_policy() -> None:
    policy = Policy.parse(FULL, "p.toml")
    assert (policy.severity("wx-user"), policy.severity("global-user-page")) == (Severity.OFF, Severity.ERROR)
    assert policy.severity("wx-kernel") is Severity.ERROR
    (one,) = policy.exceptions
    assert (one.reason, one.area) == ("frame buffer", "vmalloc")
    assert one.phys == range(0xFD00_0000, 0xFE00_0000)
    assert one.window == range(0xFF6D_7D50_4000_0000, 0xFF6D_7D50_4100_0000)


def test_what_an_exception_covers() -> None:
    policy = Policy.parse(FULL, "p.toml")
    window, phys = range(0xFF6D_7D50_4000_0000, 0xFF6D_7D50_4000_1000), range(0xFD00_0000, 0xFD00_1000)
    rule = "memory-type-conflict"
    assert policy.reason_for(rule, window, phys, "vmalloc") == "frame buffer"
    assert policy.reason_for("wx-kernel", window, phys, "vmalloc") is None
    assert policy.reason_for(rule, window, phys, "vmemmap") is None
    assert policy.reason_for(rule, window, None, "vmalloc") is None
    assert policy.reason_for(rule, window, range(0xFDFF_F000, 0xFE00_1000), "vmalloc") is None
    assert policy.reason_for(rule, range(window.start - 0x1000, window.stop), phys, "vmalloc") is None


SYMBOLS = Symbols(
    [
        SymbolSpan.of(
            [(0x8000_1F00, "T", "first"), (0x8000_2100, "t", "twin"), (0x8000_3000, "T", "last")], 0x8000_4000
        ),
        SymbolSpan.of([(0xC000_0000, "t", "twin"), (0xC000_0800, "t", "rest")], 0xC000_1000, "dummy"),
    ],
    "made here",
)


@pytest.mark.parametrize(
    ("symbol", "window", "is_covered"),
    [
        ("first", range(0x8000_1000, 0x8000_3000), True),
        ("first", range(0x8000_1000, 0x8000_4000), False),
        ("twin", range(0x8000_2000, 0x8000_3000), True),
        ("twin", range(0xC000_0000, 0xC000_1000), False),
        ("twin [dummy]", range(0xC000_0000, 0xC000_1000), True),
        ("first-last", range(0x8000_1000, 0x8000_3000), True),
        ("first-last", range(0x8000_3000, 0x8000_4000), False),
        ("last-first", range(0x8000_2000, 0x8000_3000), False),
        ("last", range(0x8000_3000, 0x8000_4000), True),
        ("none", range(0x8000_1000, 0x8000_2000), False),
    ],
)
def test_an_exception_by_symbol(symbol: str, window: range, is_covered: bool) -> None:
    """It covers the pages of the symbol, up to the next one, wherever this boot has them; without symbols nothing."""
    rows = f'[[except]]\nrule = "wx-kernel"\nreason = "patched"\nsymbol = "{symbol}"\n'
    policy = Policy.parse(HEAD + rows, "p.toml")
    assert policy.has_symbols and not Policy().has_symbols
    expected = "patched" if is_covered else None
    assert policy.reason_for("wx-kernel", window, None, "kernel_image", symbols=SYMBOLS) == expected
    assert policy.reason_for("wx-kernel", window, None, "kernel_image") is None
    assert policy.reason_for("wx-user", window, None, None, symbols=SYMBOLS) is None


def test_the_exceptions_of_every_linux_stay_unless_they_are_turned_off() -> None:
    assert Policy.parse(HEAD, "p.toml").exceptions == LINUX_EXCEPTIONS
    assert Policy.parse(HEAD + "defaults = false", "p.toml").exceptions == ()
    assert all(one.rule in BY_NAME and one.reason for one in LINUX_EXCEPTIONS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules", "p.toml is not TOML: "),
        ("", "p.toml has schema None; expected 'fivefold.policy/1'"),
        (
            HEAD + "default = true",
            "p.toml: the policy has no 'default'; expected defaults, except, fail-on, rules, schema",
        ),
        (HEAD + "defaults = 1", "p.toml: defaults is 1; expected true or false"),
        (HEAD + "fail-on = 'off'", "p.toml: fail-on is 'off'; expected error, warning, note"),
        (HEAD + "fail-on = [1]", "p.toml: fail-on is [1]; expected error, warning, note"),
        (HEAD + "rules = 3", "p.toml: rules is 3; expected a table of severities"),
        (HEAD + "[rules]\nwx = 'off'", "p.toml: there is no rule 'wx'; expected one of wx-kernel, wx-user, "),
        (HEAD + "[rules]\nwx-user = 'no'", "p.toml: wx-user is 'no'; expected error, warning, note, off"),
        (HEAD + "[rules]\nwx-user = [1]", r"p.toml: wx-user is [1]; expected error, warning, note, off"),
        (HEAD + "except = 1", "p.toml: except is 1; expected tables, each headed [[except]]"),
        (HEAD + "[[except]]\nrule = 'wx-user'", "p.toml: an exception of 'wx-user' has no reason; expected some words"),
        (HEAD + "[[except]]\nreason = 'x'", "p.toml: there is no rule None; expected one of "),
        (HEAD + "[[except]]\nreason = 'x'\narea = 1", "p.toml: area is 1; expected a name such as 'direct_map'"),
        (
            HEAD + "[[except]]\nrule = 'wx-user'\nreason = 'x'\nva = 1",
            "p.toml: an exception has no 'va'; expected area, offset, phys, range, reason, rule, symbol",
        ),
        *(
            (HEAD + f"[[except]]\nrule = 'wx-user'\nreason = 'x'\nphys = {text!r}", f"p.toml: {message}")
            for text, message in {
                "5": "'5' is not a range; expected START-END, START+SIZE or START-, the end exclusive",
                "5-4": "'5-4' is not a range of 64-bit addresses; expected the start before the end",
                "0-0x10000000000000001": "'0x10000000000000001' does not fit in 64 bits",
                "-5": "'' is not an address; expected hexadecimal such as",
                "a-z": "'z' is not an address; expected hexadecimal such as",
                7: "7 is not a range; expected START-END or START+SIZE, the end exclusive",
            }.items()
        ),
    ],
)
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(FormatError) as caught:
        Policy.parse(text, "p.toml")
    assert str(caught.value).startswith(message)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text(FULL)
    assert load_policy(path).name == str(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(FormatError, match=r"p\.toml is not UTF-8 text; expected a policy in TOML$"):
        load_policy(path)
    path.write_bytes(b"#" * (MAX_FILE + 1))
    with pytest.raises(FormatError, match=rf"p\.toml is larger than {MAX_FILE} bytes; expected a policy in TOML$"):
        load_policy(path)


def test_rules_have_unique_names() -> None:
    assert len(BY_NAME) == len(RULES)
    assert all(rule.severity is not Severity.OFF and rule.why.endswith(".") for rule in RULES)
