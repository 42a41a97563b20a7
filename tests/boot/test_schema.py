"""What `--json` promises: the schema, at least twenty checks a run, the mode triple one of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from fivefold.boot import BootOptions, Image
from fivefold.boot import boot as boot_all
from fivefold.boot.run import VARIABLES
from fivefold.layout import image_areas
from fivefold.units import MIB

Report = dict[str, object]
HEX = re.compile(r"0x[0-9a-f]{16}")


@pytest.fixture(scope="module")
def report(image: Image) -> Report:
    """Both CPUs, through JSON and back."""
    made: Report = json.loads(json.dumps(boot_all(options=BootOptions(memory=32 * MIB), image=image).to_json()))
    return made


def test_the_whole(report: Report) -> None:
    assert set(report) == {"schema", "ok", "runs", "skipped"}
    assert (report["schema"], report["ok"], report["skipped"]) == ("fivefold.boot/1", True, [])


RUN = {
    "cpu": str, "engine": str, "entry": str, "mode": str, "levels": int, "reason": str, "ok": bool, "areas": dict,
    "variables": dict, "facts": dict, "checks": list, "instructions": int, "skipped": list, "event": str,
    "seconds": float,
}  # fmt: skip


@pytest.mark.parametrize(("number", "cpu", "levels"), [(0, "la57", 5), (1, "la48", 4)])
def test_a_run(report: Report, number: int, cpu: str, levels: int) -> None:
    run = report["runs"][number]  # type: ignore[index]
    assert {name: type(value) for name, value in run.items()} == RUN
    assert (run["cpu"], run["mode"], run["levels"], run["engine"], run["entry"]) == (cpu, cpu, levels, "unicorn", "pvh")
    for name, area in run["areas"].items():
        assert set(area) == {"start", "end"}, name
        assert all(HEX.fullmatch(bound) for bound in area.values())
    assert {area.name for area in image_areas("linux", levels) if area.kind == "mapped"} <= set(run["areas"])
    assert list(run["variables"]) == list(VARIABLES)
    shift_and_entries = [run["variables"][name] for name in VARIABLES[:2]]
    assert shift_and_entries == ([48, 512] if levels == 5 else [39, 1])
    assert all(HEX.fullmatch(run["variables"][name]) for name in VARIABLES[2:])


@pytest.mark.parametrize("number", [0, 1])
def test_checks(report: Report, number: int) -> None:
    checks = report["runs"][number]["checks"]  # type: ignore[index]
    assert len(checks) >= 20
    for check in checks:
        assert set(check) == {"name", "by", "ok", "detail"}
        assert check["by"] in ("guest", "outside")
        assert re.fullmatch("[a-z0-9_]+", check["name"])
    named = [(check["name"], check["by"]) for check in checks]
    assert len(set(named)) == len(named), "no check twice"
    assert {("mode_triple", "guest"), ("mode_triple", "outside"), ("completed", "outside")} <= set(named)
    outside = {name for name, by in named if by == "outside"}
    for area in image_areas("linux", 5 - number):
        kinds = {"mapped": f"area_{area.name}"}
        assert kinds.get(area.kind, f"guard_{area.name}") in outside


def test_no_check_is_of_a_kind_that_cannot_fail(passes: Callable[..., object], failures: object) -> None:
    """The names are the same in every run with the same options, so a check that vanished is seen."""
    names = [
        [(check.name, check.by) for check in passes("la57", cmdline=cmdline).checks]  # type: ignore[attr-defined]
        for cmdline in ("", "quiet")
    ]
    assert names[0] == names[1]
