"""`fivefold audit` from its command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from fivefold.cli.main import main

GUEST = str(Path(__file__).parents[1] / "data" / "guests" / "plain-la57-kaslr.elf.xz")


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit status of a command."""
    monkeypatch.setattr(sys, "argv", ["fivefold", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_a_guest_that_passes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "audit", GUEST) == 1
    rest = "1 of 2 roots looked at; --all-roots looks at the other 1, too\n"
    assert capsys.readouterr().out.endswith(f"FAILED: 19 rules, 2 warning, 5 excepted, {rest}")
    assert run(monkeypatch, "audit", GUEST, "--as-if", "smep=1,smap=1") == 0
    assert capsys.readouterr().out.endswith(f"passed: 19 rules, 5 excepted, {rest}")


def test_a_policy_without_exceptions(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    policy = tmp_path / "strict.toml"
    policy.write_text('schema = "fivefold.policy/1"\ndefaults = false\n')
    assert run(monkeypatch, "audit", GUEST, "--policy", str(policy), "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["policy"], told["ok"], told["totals"]["error"]) == (str(policy), False, 1)


@pytest.mark.parametrize(
    ("words", "policy", "status"),
    [
        ((), "", 1),
        (("--fail-on", "error"), "", 0),
        ((), "fail-on = 'error'\n", 0),
        (("--fail-on", "warning"), "fail-on = 'error'\n", 1),
        ((), "[rules]\nsmep-off = 'note'\nsmap-off = 'note'\n", 0),
        (("--fail-on", "note"), "[rules]\nsmep-off = 'note'\nsmap-off = 'note'\n", 1),
        ((), "[[except]]\nrule = 'smep-off'\nreason = 'x'\n[[except]]\nrule = 'smap-off'\nreason = 'x'\n", 0),
        (("--fail-on", "error", "--strict"), "", 1),  # nx-off cannot be asked of a dump
    ],
)
def test_what_fails(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    words: tuple[str, ...],
    policy: str,
    status: int,
) -> None:
    """A guest without SMEP and SMAP has two warnings; they are told whatever fails."""
    path = tmp_path / "policy.toml"
    path.write_text(f'schema = "fivefold.policy/1"\n{policy}')
    common = ("audit", GUEST, "--policy", str(path), *words)
    assert run(monkeypatch, *common, "--json") == status
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is (status == 0 or "--strict" in words)
    assert {"smep-off", "smap-off"} <= {one["rule"] for one in told["findings"]}
    run(monkeypatch, *common, "--format", "junit")
    junit = capsys.readouterr().out
    assert ('failures="0"' in junit) is told["ok"]
    assert told["fail_on"] in ("error", "warning", "note")


@pytest.mark.parametrize("form", ["csv", "sarif", "junit"])
def test_formats(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], form: str) -> None:
    assert run(monkeypatch, "audit", GUEST, "--format", form, "--as-if", "smep=1,smap=1") == 0
    starts = {"csv": "rule,severity,", "sarif": "{\n", "junit": "<?xml"}
    assert capsys.readouterr().out.startswith(starts[form])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--policy", "no.toml"), "fivefold: no.toml: No such file or directory\n"),
        (
            ("--pat", "wb"),
            "fivefold: Invalid value for '--pat': 'wb' is not a PAT MSR; expected linux, reset, or eight bytes, "
            "each of 0, 1, 4, 5, 6, 7\n",
        ),
        (("--cr3", "0x5000"), "fivefold: "),
    ],
)
def test_refusals(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert run(monkeypatch, "audit", GUEST, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith(message) and error.count("\n") == 1


def test_a_baseline_and_strictness(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    baseline = tmp_path / "baseline.toml"
    assert run(monkeypatch, "audit", GUEST, "--all-roots", "--write-policy", str(baseline)) == 0
    assert run(monkeypatch, "audit", GUEST, "--all-roots", "--policy", str(baseline)) == 0
    # EFER is in no dump, so one rule was not asked.
    assert run(monkeypatch, "audit", GUEST, "--policy", str(baseline), "--strict") == 1
    assert 'fail-on = "warning"' in baseline.read_text()
    assert run(monkeypatch, "audit", GUEST, "--policy", str(baseline), "--strict", "--as-if", "nxe=1") == 0
    capsys.readouterr()
    assert run(monkeypatch, "audit", GUEST, "--format", "sarif", "--sarif-uri", "guest/memory.elf") == 1
    assert '"uri": "guest/memory.elf"' in capsys.readouterr().out
