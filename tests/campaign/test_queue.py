"""The work queue: every part comes to one end, whatever becomes of the workers and of the state file."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from fivefold.campaign.parts import CampaignError, PartDone, PartLost, Workers, run_campaign

PARTS = {str(number): number for number in range(-1, 7)}
ENDS = sorted(run_campaign(math.sqrt, PARTS, {}, Workers()))


def test_a_part_that_raises_is_lost_alone() -> None:
    assert [end.name for end in ENDS if isinstance(end, PartLost)] == ["-1"]
    assert PartDone("4", 2.0) in ENDS


def test_processes_give_the_same_ends() -> None:
    assert sorted(run_campaign(math.sqrt, PARTS, {}, Workers(jobs=3))) == ENDS


def test_a_worker_that_dies_costs_its_part_alone() -> None:
    # The function takes a text to run: one ends the process that runs it, and one does not.
    parts = {"dies": "__import__('os')._exit(9)", "lives": "0", "raises": "1/0"}
    ends = dict(run_campaign(eval, parts, {}, Workers(jobs=2)))
    assert ends == {"dies": "its worker died 3 times", "lives": 0, "raises": "ZeroDivisionError: division by zero"}


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    state = tmp_path / "state"
    plan = {"of": "roots"}
    first = run_campaign(math.sqrt, PARTS, plan, Workers(), state)
    begun = [next(first), next(first), next(first)]
    first.close()
    assert [json.loads(line)["part"] for line in state.read_text().splitlines()[1:]] == ["0", "1"]
    # The work is another now: what is done comes from the file.
    rest = list(run_campaign(math.cbrt, PARTS, plan, Workers(), state))
    assert rest[:2] == begun[1:]
    assert PartDone("6", math.cbrt(6)) in rest
    assert len(rest) == len(PARTS)


@pytest.mark.parametrize("cut", [1, 9, 30])
def test_a_state_that_is_cut_loses_its_last_part(tmp_path: Path, cut: int) -> None:
    state = tmp_path / "state"
    list(run_campaign(math.sqrt, PARTS, {}, Workers(), state))
    whole = state.read_bytes()
    state.write_bytes(whole[:-cut])
    assert sorted(run_campaign(math.sqrt, PARTS, {}, Workers(), state)) == ENDS
    assert sorted(state.read_bytes().splitlines()) == sorted(whole.splitlines())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no json\n", "is no state of a campaign"),
        ("no json", "is no state of a campaign"),
        ("[1]\n", "is no state of a campaign"),
        ('{"schema": "other/1", "plan": {}}\n', "its schema is 'other/1'"),
        ('{"schema": "fivefold.campaign/1", "plan": {"seed": 2}}\n', "another campaign: seed differ"),
        ('{"schema": "fivefold.campaign/1", "plan": {"seed": 1}}\ngarbage\n', "a line is no part of a campaign"),
    ],
)
def test_a_file_that_is_no_state_of_this_campaign_is_refused(tmp_path: Path, text: str, says: str) -> None:
    state = tmp_path / "state"
    state.write_text(text)
    with pytest.raises(CampaignError, match=says):
        list(run_campaign(math.sqrt, PARTS, {"seed": 1}, Workers(), state))
    assert state.read_text() == text


def test_two_campaigns_do_not_write_one_state(tmp_path: Path) -> None:
    first = run_campaign(math.sqrt, PARTS, {}, Workers(), tmp_path / "state")
    next(first)
    with pytest.raises(CampaignError, match="another campaign has"):
        list(run_campaign(math.sqrt, PARTS, {}, Workers(), tmp_path / "state"))
    first.close()


def test_a_place_that_keeps_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for place in (tmp_path / "fifo", tmp_path, tmp_path / "nowhere" / "state"):
        with pytest.raises((CampaignError, OSError), match=r"no file that can keep|cannot open"):
            list(run_campaign(math.sqrt, PARTS, {}, Workers(), place))
