"""An audit as text, JSON, CSV, SARIF and JUnit XML."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree as Xml

import pytest

from fivefold.report.junit import write_junit
from fivefold.report.sarif import sarif
from fivefold.report.text import audit as audit_text
from fivefold.survey.audit.audit import Audit, audit
from fivefold.survey.audit.policy import LINUX_EXCEPTIONS, Policy
from fivefold.survey.audit.rules import RULE_NAMES, Severity
from fivefold.survey.space import open_space

GUEST = Path(__file__).parents[1] / "data" / "guests" / "plain-la57-kaslr.elf.xz"


@pytest.fixture(scope="module")
def found() -> Iterator[Audit]:
    """A guest whose trampoline is not excepted; one rule is off."""
    with open_space(str(GUEST), as_if={"smep": True}) as space:
        yield audit(space, Policy({"null-page": Severity.OFF}, LINUX_EXCEPTIONS[1:], "strict.toml"))


def test_text(found: Audit) -> None:
    out = io.StringIO()
    audit_text.write_text(found, out)
    lines = out.getvalue().splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("error"))
    assert lines[at : at + 3] == [
        "error    executable-direct-map     executable direct map: 1 finding",
        "         0xff453d0a8009a000-0xff453d0a8009b000        4K direct_map: 4K pages of the direct map are r-x-",
        "           0xff453d0a8009a000: PML5[325] 0x1ec00067, PML4[122] 0x1ec01067, PDPT[42] 0x1ec02067, "
        "PD[0] 0x1ec03067, PT[154] 0x9a161",
    ]
    assert "skipped  null-page                 turned off by strict.toml" in lines
    assert lines[3] == "# policy: strict.toml"
    assert lines[-1] == (
        "FAILED: 18 rules, 1 error, 1 warning, 4 excepted, "
        "1 root looked at (memory was not searched for roots; --all-roots looks at all)"
    )


def test_all_of_the_text_tells_what_is_excepted(found: Audit) -> None:
    out = io.StringIO()
    audit_text.write_text(found, out, everything=True)
    assert out.getvalue().count("           excepted: static tables lie in the kernel's data") == 4


def test_json(found: Audit) -> None:
    told = json.loads(json.dumps(audit_text.audit_json(found)))
    assert (told["schema"], told["ok"], told["levels"]) == ("fivefold.audit/1", False, 5)
    assert told["totals"] == {"error": 1, "warning": 1, "note": 0, "excepted": 4}
    assert [rule["name"] for rule in told["rules"]] == list(RULE_NAMES)
    (one,) = [one for one in told["findings"] if one["severity"] == "error"]
    assert (one["start"], one["end"], one["size"]) == ("0xff453d0a8009a000", "0xff453d0a8009b000", 4096)
    assert one["phys"] == {"start": "0x000000000009a000", "end": "0x000000000009b000"}
    assert [step["level"] for step in one["evidence"][0]["steps"]] == [5, 4, 3, 2, 1]


def test_csv(found: Audit) -> None:
    out = io.StringIO()
    audit_text.write_csv(found, out)
    rows = list(csv.DictReader(io.StringIO(out.getvalue())))
    assert len(rows) == len(found.findings) == 6
    assert {name: rows[-1][name] for name in ("rule", "start", "end", "size", "area")} == {
        "rule": "smap-off",
        "start": "",
        "end": "",
        "size": "",
        "area": "",
    }
    assert [row["phys"] for row in rows if row["severity"] == "error"] == ["0x000000000009a000"]


def test_sarif(found: Audit) -> None:
    told = json.loads(json.dumps(sarif(found)))
    (run,) = told["runs"]
    assert told["version"] == "2.1.0"
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == list(RULE_NAMES)
    for result in run["results"]:
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        assert ("suppressions" in result) == (result["ruleId"] == "table-writable-alias")
        assert result["locations"][0]["physicalLocation"]["region"] == {"startLine": 1}
        assert "ff453d" not in result["partialFingerprints"]["place/v2"], "an address that the next boot does not have"
    (artifact,) = run["artifacts"]
    assert artifact["location"] == {"uri": quote(os.path.relpath(GUEST))}
    assert sarif(found, "memory/guest.elf")["runs"][0]["artifacts"][0]["location"] == {"uri": "memory/guest.elf"}
    odd = sarif(found, "kernel/con fig 5% ü %41#x")["runs"][0]["artifacts"][0]["location"]
    assert odd == {"uri": "kernel/con%20fig%205%25%20%C3%BC%20%41#x"}
    assert all(rule["help"]["text"] and rule["helpUri"] for rule in run["tool"]["driver"]["rules"])
    skipped = [one["associatedRule"]["id"] for one in run["invocations"][0]["toolExecutionNotifications"][:2]]
    assert skipped == ["null-page", "nx-off"]
    assert {rule["id"]: rule["defaultConfiguration"] for rule in run["tool"]["driver"]["rules"]}["null-page"] == {
        "level": "none",
        "enabled": False,
    }


def test_junit(found: Audit) -> None:
    out = io.StringIO()
    write_junit(found, out)
    suite = Xml.fromstring(out.getvalue().partition("\n")[2])
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("20", "2", "2")
    assert [case.get("name") for case in suite.iter("testcase")] == list(RULE_NAMES)
    failure, register = suite.iter("failure")
    assert (register.text or "").startswith("registers -: CR4.SMAP=0 (CR4 of CPU 0): ")
    assert failure.get("message") == "executable direct map: 1"
    assert (failure.text or "").startswith("0xff453d0a8009a000-0xff453d0a8009b000 direct_map: ")
