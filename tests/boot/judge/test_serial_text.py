"""The judge of serial logs: whole, damaged, several kernels in one, and what is not ours."""

from __future__ import annotations

import json
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fivefold.boot.judge.serial_text import judge_text

CHECKS = 57
FIRMWARE = "SeaBIOS (version 1.16)\r\n\x1b[2J\x1b[01;01HGRUB loading...\nWelcome!  \x1b[?25l Booting `Fivefold'\r\n\r\n"
LINUX = "[    0.000000] Linux version 6.1\nnot found: ok\nrange 1..4\nKTAP version 1\nok 1 other_test\n...\n---\n"


def report(
    levels: int = 5, failed: tuple[int, ...] = (), skipped: tuple[int, ...] = (), upto: int = CHECKS, end: bool = True
) -> str:
    """What a kernel writes, from the description of the format in docs/boot.md."""
    text = f"TAP version 14\n# fivefold: {levels} levels of page tables, image at 0x0000000001000000\n"
    for number in range(1, upto + 1):
        text += f"{'not ' if number in failed else ''}ok {number} - check_{'abcdefghij'[number % 10]}_{number}"
        text += " # SKIP this machine has none\n" if number in skipped else "\n"
        if number in failed:
            text += "  ---\n  got: 0x0000000000000007\n  expected: 0x0000000000000001\n  ...\n"
    if end:
        passed = upto - len(failed) - len(skipped)
        text += f"1..{upto}\n# passed {passed} of {upto}, failed {len(failed)}, skipped {len(skipped)}\n"
    return text


def told(text: str | bytes) -> tuple[bool, list[dict[str, Any]]]:
    judgement = judge_text(text if isinstance(text, bytes) else text.encode())
    return judgement.ok, [one.to_json() for one in judgement.reports]


def test_a_whole_report() -> None:
    ok, reports = told(report(skipped=(9,)))
    assert ok
    assert reports == [
        {
            "mode": "la57", "levels": 5, "image": "0x0000000001000000", "planned": CHECKS, "passed": CHECKS - 1,
            "failed": 0, "skipped": 1, "unreadable": 0, "complete": True, "ok": True, "failures": [],
            "skips": [{"name": "check_j_9", "reason": "this machine has none"}], "bail_out": None,
            "started_next": False,
        }
    ]  # fmt: skip


def test_a_failed_check() -> None:
    ok, (one,) = told(report(levels=4, failed=(3, 57)))
    assert (ok, one["mode"], one["failed"], one["passed"]) == (False, "la48", 2, CHECKS - 2)
    assert one["failures"] == ["check_d_3", "check_h_57"]


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.9])
def test_a_text_that_ends_early(cut: float) -> None:
    whole = report()
    ok, (one,) = told(whole[: int(len(whole) * cut)])
    assert (ok, one["complete"], one["failed"], one["planned"]) == (False, False, 0, None)


def test_a_report_without_its_sum_is_whole_if_every_check_is_there() -> None:
    text = report().rpartition("# passed")[0]
    assert told(text)[0]
    assert not told(text.replace("ok 20 - check_a_20\n", ""))[0]


def test_several_kernels() -> None:
    ok, reports = told(FIRMWARE + report(5) + "# kexec\n" + report(4) + LINUX)
    assert (ok, [one["mode"] for one in reports]) == (True, ["la57", "la48"])
    ok, reports = told(report(5) + report(4, failed=(8,)))
    assert (ok, [one["ok"] for one in reports]) == (False, [True, False])
    ok, reports = told(report(5, upto=30, end=False) + FIRMWARE + report(5))
    assert (ok, [one["complete"] for one in reports]) == (False, [False, True]), "a machine that started again"


def test_a_second_kernel_whose_beginning_is_lost() -> None:
    headless = report(4, failed=(5,)).partition("\n# fivefold")[2].partition("\n")[2]
    ok, reports = told(report(5) + headless)
    assert (ok, [one["mode"] for one in reports], reports[1]["failed"]) == (False, ["la57", None], 1)
    ok, reports = told(report(5, upto=40, end=False) + headless)
    assert (ok, len(reports)) == (False, 2)


def test_a_kernel_that_hibernates_goes_on_in_the_next_report() -> None:
    saved = report(upto=40, end=False) + "# hibernate: saved\n"
    assert told(saved + FIRMWARE + report())[0]
    assert not told(saved)[0]
    assert not told(report(upto=40, failed=(3,), end=False) + "# hibernate: saved\n" + report())[0]


@pytest.mark.parametrize("line", ["# kexec: starting the next kernel\n", "# kexec: startng the nxt kernel\r\n"])
@pytest.mark.parametrize("after", ["", "TAP version 14\n", LINUX])
def test_a_kernel_that_another_started_must_report(line: str, after: str) -> None:
    """One that dies before its first line leaves a text that is whole."""
    ok, (one,) = told(report() + line + after)
    assert (ok, one["ok"], one["started_next"]) == (False, True, True)
    assert told(report() + line + FIRMWARE + report(4))[0]
    ok, reports = told(report() + line + "Bail out! fivefold: the CPU has no NX\n")
    assert (ok, reports[0]["bail_out"]) == (False, "fivefold: the CPU has no NX")


def test_a_kernel_that_gives_up() -> None:
    ok, (one,) = told(report(upto=9, end=False) + "Bail out! panic: no memory for the areas\n")
    assert (ok, one["complete"], one["bail_out"]) == (False, False, "panic: no memory for the areas")


@pytest.mark.parametrize("text", ["", FIRMWARE, LINUX, "ok 1 - a\nok 2 - b\n1..2\n", "TAP version 14\n", "\xff\0" * 9])
def test_no_report(text: str) -> None:
    assert told(text) == (False, [])


def test_text_inside_lines_and_line_ends_of_all_kinds() -> None:
    text = report().replace("ok 7 - ", "[cpu 1 is up] ok 7 - ").replace("check_d_13", "che[cpu 2]ck_d_13")
    text = text.replace("ok 30 - ", "\x1b[0mok 30 - ").replace("\n", LINUX and "\r\n")
    assert told(text)[0]
    assert told(text.replace("\r\n", "\r"))[0]
    assert told(text.encode("utf-16"))[0]


def test_other_text_between_lines() -> None:
    lines = report(skipped=(4,)).splitlines(keepends=True)
    ok, reports = told("".join(line + LINUX for line in lines))
    assert (ok, len(reports), reports[0]["skipped"]) == (True, 1, 1)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_lost_characters_hide_no_failure(data: st.DataObject) -> None:
    """However much is lost: a text whose kernel failed is never judged as passed, as long as its parts disagree."""
    text = report(failed=(data.draw(st.integers(1, CHECKS)),))
    lost = data.draw(st.sets(st.integers(0, len(text) - 1), max_size=40))
    assert not told(without(text, lost))[0]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_lost_characters_change_no_verdict_as_long_as_the_sum_is_whole(data: st.DataObject) -> None:
    """What other lines lost does not matter, whole lines that are missing neither: its numbers add up."""
    text = report(skipped=(20,))
    before_sum = text.index("# passed") - 1
    start = data.draw(st.integers(0, before_sum - 1))
    run = set(range(start, min(start + data.draw(st.integers(0, 90)), before_sum)))
    lost = run | data.draw(st.sets(st.integers(0, before_sum - 1), max_size=8))
    ok, reports = told(without(text, lost))
    assert (ok, len(reports), reports[0]["failed"]) == (True, 1, 0)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_sum_that_is_damaged_or_lost_changes_no_verdict_where_plan_and_checks_are_there(data: st.DataObject) -> None:
    text = report(skipped=(20,))
    lost = data.draw(st.sets(st.integers(text.index("# passed"), len(text) - 1), min_size=1))
    assert told(without(text, lost))[0]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_characters_lost_from_the_sum_and_elsewhere_leave_a_doubt_that_is_named(data: st.DataObject) -> None:
    """Never a failure that was not reported: the report is cut short, or has checks that cannot be read."""
    text = report(skipped=(20,))
    lost = data.draw(st.sets(st.integers(0, len(text) - 1), max_size=8))
    lost |= data.draw(st.sets(st.integers(text.index("# passed"), len(text) - 1), min_size=1))
    ok, (one, *more) = told(without(text, lost))
    assert not more
    assert one["failed"] == 0
    assert ok == (one["complete"] and one["planned"] is not None and not one["unreadable"])


def without(text: str, lost: set[int]) -> str:
    return "".join(letter for at, letter in enumerate(text) if at not in lost)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 3000), st.integers(1, 16))
def test_a_burst_that_a_full_fifo_loses(at: int, size: int) -> None:
    text = report()
    at %= len(text) - 120
    assert told(text[:at] + text[at + size :])[0]
    failed = report(failed=(33,))
    assert not told(failed[:at] + failed[at + size :])[0]


@given(st.binary(max_size=400))
def test_any_bytes(data: bytes) -> None:
    told(data)
    told(report().encode()[:700] + data + report().encode()[700:])


# -- the command -----------------------------------------------------------------------------


def judge(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    from fivefold.cli.commands import run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["fivefold", "judge", *words])
        status = run()
    return status, *capsys.readouterr()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "serial.txt"
    log.write_text(FIRMWARE + report(5) + report(4, failed=(8,)))
    assert judge(capsys, str(log)) == (
        1,
        "la57, image at 0x0000000001000000: 57 of 57 passed\n"
        "la48, image at 0x0000000001000000: 56 of 57 passed, 1 failed\n  FAILED check_i_8\n"
        "failed: 2 reports\n",
        "",
    )
    status, out, _ = judge(capsys, str(log), "--json")
    assert (status, json.loads(out)["schema"], len(json.loads(out)["reports"])) == (1, "fivefold.judge/1", 2)
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(report().encode())))
    assert judge(capsys, "-")[0] == 0


def test_the_command_without_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "serial.txt"
    log.write_text(LINUX)
    assert judge(capsys, str(log)) == (2, "", f"fivefold: {log}: it contains no report of a Fivefold kernel\n")
    status, out, _ = judge(capsys, str(log), "--json")
    assert (status, json.loads(out)) == (2, {"schema": "fivefold.judge/1", "ok": False, "reports": []})
    assert judge(capsys, str(tmp_path / "none"))[0] == 2
