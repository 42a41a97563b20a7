"""Campaigns on a real Dask scheduler with two workers, one of which is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from fivefold.campaign.parts import CampaignError, PartDone, Workers, run_campaign
from fivefold.conform import campaign
from fivefold.conform.campaign import Plan, packed_part, run_plan, unpack
from fivefold.conform.judging.report import ConformReport, to_json

PLAN = Plan("unicorn", None, None, ("la48", "la57"), 300, 5)


class Cluster(NamedTuple):
    """A scheduler's address, and its workers."""

    address: str
    workers: list[subprocess.Popen[bytes]]


def _dask(name: str, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", f"distributed.cli.dask_{name}", *arguments, "--no-dashboard"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if not os.environ.get("FIVEFOLD_REQUIRE_CLUSTER"):
        pytest.importorskip("distributed", reason="install it with: pip install 'fivefold[cluster]'")
    from distributed import Client

    place = tmp_path_factory.mktemp("dask")
    file = place / "scheduler.json"
    running = [_dask("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file))]
    try:
        for number in range(2):
            running.append(
                _dask("worker", "--scheduler-file", str(file), "--nthreads", "1", "--no-nanny",
                      "--local-directory", str(place / str(number)))
            )  # fmt: skip
        with Client(scheduler_file=str(file), timeout=60, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)
            yield Cluster(client.scheduler.address, running[1:])
    finally:
        for process in running:
            process.kill()
            process.wait()


def test_a_worker_that_is_killed_costs_nothing_but_time(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "PART", 50)
    parts = {str(part.start): (PLAN, part) for part in PLAN.parts()}
    engine = PLAN.open()
    whole = ConformReport(engine.name, engine.version, PLAN.seed)
    ends = run_campaign(packed_part, parts, {}, Workers(dask=cluster.address))
    for number, end in enumerate(ends):
        if number == 0:
            os.kill(cluster.workers[0].pid, signal.SIGKILL)
        assert isinstance(end, PartDone)
        whole.merge(unpack(end.result))
    here = ConformReport(engine.name, engine.version, PLAN.seed)
    for argument in parts.values():
        here.merge(unpack(packed_part(argument)))
    assert number + 1 == len(parts) == 6
    assert to_json(whole) == to_json(here)


def test_a_plan_has_the_same_answer_on_a_cluster(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign, "PART", 150)
    there = run_plan(PLAN, dask=cluster.address, state=tmp_path / "state")
    assert to_json(there) == to_json(run_plan(PLAN)) == to_json(run_plan(PLAN, jobs=2))
    # All of it is in the state: no scheduler is asked any more.
    assert to_json(run_plan(PLAN, dask="tcp://127.0.0.1:9", state=tmp_path / "state")) == to_json(there)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense", "tcp://"])
def test_a_scheduler_that_is_not_there_is_one_line(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="install it with: pip install 'fivefold[cluster]'")
    monkeypatch.setattr("fivefold.campaign.cluster.PATIENCE", "1s")
    with pytest.raises(CampaignError, match="no Dask scheduler answers") as told:
        list(run_campaign(abs, {"a": 1}, {}, Workers(dask=address)))
    assert "\n" not in str(told.value)
