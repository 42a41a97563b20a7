"""The action, the workflow and the job for CI of others: their YAML by its schemas, their steps on what cannot be done.

tests/live/test_ci_steps.py has the steps on a real kernel.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

CI = Path(__file__).parents[2] / "integrations" / "ci"
SCHEMAS = {
    "action.yml": "vendor.github-actions",
    "workflow.yml": "vendor.github-workflows",
    "gitlab-ci.yml": "vendor.gitlab-ci",
}
STEPS = ("install.sh", "audit_boot.sh", "matrix.sh")


def conforms(file: Path, schema: str) -> bool:
    if find_spec("check_jsonschema") is None:
        if os.environ.get("FIVEFOLD_REQUIRE_WHEEL"):
            pytest.fail("check-jsonschema is required here", pytrace=False)
        pytest.skip("check-jsonschema is not installed: pip install '.[test]'")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(file)]
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0


def test_the_yaml_has_what_its_reader_expects(tmp_path: Path) -> None:
    for name, schema in SCHEMAS.items():
        assert conforms(CI / name, schema), name

    broken = tmp_path / "action.yml"
    broken.write_text((CI / "action.yml").read_text().replace("using: composite", "using: compote"))
    assert not conforms(broken, SCHEMAS["action.yml"])


def test_every_step_is_a_file_that_is_there_and_every_file_a_step() -> None:
    for name in ("action.yml", "gitlab-ci.yml"):
        named = set(re.findall(r"(\w+\.sh)", (CI / name).read_text()))
        assert named == set(STEPS), name
    assert {path.name for path in CI.glob("*.sh")} == set(STEPS)
    assert "uses: ./fivefold/integrations/ci\n" in (CI / "workflow.yml").read_text()


def test_what_the_action_sets_is_what_the_steps_read() -> None:
    read = {word for step in STEPS for word in re.findall(r"\$\{([A-Z_]+):", (CI / step).read_text())}
    given = {
        word
        for name in ("action.yml", "gitlab-ci.yml")
        for word in re.findall(r"^ +([A-Z_]+): ", (CI / name).read_text(), re.MULTILINE)
    }

    assert given - read == {"ACTION", "KERNEL", "RESULTS", "GIT_SUBMODULE_STRATEGY"}


def step(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    fivefold = str(Path(sys.executable).with_name("fivefold"))
    return subprocess.run(
        ["sh", str(CI / name), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"FIVEFOLD": fivefold} | environment,
        timeout=120,
    )


@pytest.mark.parametrize("arguments", [(), ("kernel",), ("/nonexistent", "out")])
@pytest.mark.parametrize("name", ["audit_boot.sh", "matrix.sh"])
def test_a_step_that_cannot_be_done_ends_with_2(name: str, arguments: tuple[str, ...], tmp_path: Path) -> None:
    given = tuple(str(tmp_path / "out") if word == "out" else word for word in arguments)
    done = step(name, *given)

    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("audit_boot.sh", {"FIVEFOLD": "/nonexistent/ff"}, "there is no /nonexistent/ff; install.sh installs it"),
        ("matrix.sh", {"FIVEFOLD": "/nonexistent/ff"}, "there is no /nonexistent/ff; install.sh installs it"),
        ("audit_boot.sh", {"TIMEOUT": "2m"}, "TIMEOUT: 2m is no number of seconds"),
        ("audit_boot.sh", {"POLICY": "/nonexistent"}, "POLICY: /nonexistent is no file"),
        ("audit_boot.sh", {"DIR": "/proc/nowhere"}, "/proc/nowhere"),
        ("matrix.sh", {"DIR": "/proc/nowhere"}, "/proc/nowhere"),
        ("install.sh", {}, "/proc/nowhere"),
    ],
)
def test_what_a_step_cannot_use_is_refused_with_2(name: str, given: dict[str, str], told: str, tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(bytes(4096))
    words = [str(tmp_path / "kernel"), given.get("DIR", str(tmp_path / "out"))]
    done = step(name, *(["/proc/nowhere"] if name == "install.sh" else words), **{"QEMU": "false", **given})

    assert (done.returncode, done.stdout) == (2, "") and told in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_with_a_comma_reaches_qemu(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(bytes(4096))
    for program, text in (("qemu", f'for word; do echo "$word"; done > "{tmp_path}/words"'), ("ff", "exit 0")):
        (tmp_path / program).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / program).chmod(0o755)
    programs = {"QEMU": str(tmp_path / "qemu"), "FIVEFOLD": str(tmp_path / "ff")}
    step("audit_boot.sh", str(tmp_path / "kernel"), str(tmp_path / "a, b"), **programs)

    words = (tmp_path / "words").read_text().splitlines()
    # `-serial file:` would take two commas for two.
    assert words[words.index("-chardev") + 1] == f"file,id=console,path={tmp_path}/a,, b/la48.log"
    assert words[words.index("-serial") + 1] == "chardev:console"


def test_a_missing_qemu_is_said(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(bytes(4096))
    done = step("audit_boot.sh", str(tmp_path / "kernel"), str(tmp_path / "out"), QEMU="/nonexistent/qemu")

    assert (done.returncode, done.stderr) == (
        2,
        "audit_boot.sh: there is no /nonexistent/qemu; install.sh installs it\n",
    )
    assert not (tmp_path / "out").exists()


def test_what_is_no_kernel_is_refused_before_a_boot(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no kernel\n")
    done = step("audit_boot.sh", str(tmp_path / "text"), str(tmp_path / "out"), QEMU="false", TMPDIR=str(tmp_path))

    assert done.returncode == 2 and "it begins with" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "text"]
