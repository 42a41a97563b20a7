"""What CI installs is what pyproject.toml asks for: the newest versions, and the lowest that it admits."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
REQUIREMENT = re.compile(r"([\w.-]+)[>=]=([\d.]+)(?:,<[\d.]+)?$")


def asked(*extras: str, build: bool = True) -> dict[str, str]:
    """The packages that pyproject.toml names, with *build* those that build it, with the lowest version of each."""
    project = PROJECT["project"]
    lines = [*project["dependencies"], *(PROJECT["build-system"]["requires"] if build else ())]
    for extra in extras:
        lines += of_extra(extra)
    return {match[1]: match[2] for line in lines if (match := REQUIREMENT.match(line))} | {
        line: "no lower bound" for line in lines if not REQUIREMENT.match(line)
    }


def of_extra(name: str) -> list[str]:
    """The lines of an extra, and those of the extras of ours that it has."""
    found = []
    for line in PROJECT["project"]["optional-dependencies"][name]:
        ours = re.fullmatch(r"fivefold\[([\w,]+)\]", line)
        found += [part for inner in ours[1].split(",") for part in of_extra(inner)] if ours else [line]
    return found


def pinned(file: str) -> dict[str, list[str]]:
    """The packages of a requirements file, each with its versions: more than one where Pythons differ."""
    found: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==(\S+)", (ROOT / file).read_text(), re.MULTILINE):
        found.setdefault(name, []).append(version)
    return found


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition(".post")[0]))


def test_every_dependency_has_a_lower_bound() -> None:
    assert "no lower bound" not in asked("test", "docs").values()


def test_the_newest_has_all_that_is_asked_for() -> None:
    have = pinned("requirements-ci.txt")

    for name, lowest in asked("test", "docs").items():
        assert name in have, f"run .ci/lock: requirements-ci.txt lacks {name}"
        assert min(map(numbers, have[name])) >= numbers(lowest)
    assert "editables" in have


def test_the_lowest_are_the_bounds() -> None:
    """So that a bound that is lowered is a bound that is tested."""
    have = pinned("requirements-lowest.txt")

    for name, lowest in asked("test", build=False).items():
        same = numbers(have.get(name, ["0"])[0])[: len(numbers(lowest))]
        assert same == numbers(lowest), (
            f"run .ci/lock: requirements-lowest.txt has {name} {have.get(name)}, not {lowest}"
        )


@pytest.mark.parametrize("file", ["requirements-ci.txt", "requirements-lowest.txt"])
def test_each_package_has_hashes_and_no_address(file: str) -> None:
    text = (ROOT / file).read_text()
    entries = re.split(r"\n(?=[\w])", text.partition("\n")[2])

    assert entries
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []
    assert not re.search(r"://|--index|--find-links|--extra", text)


def test_the_version_is_in_the_changelog() -> None:
    heads = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert heads[0] in ("Unreleased", PROJECT["project"]["version"])
    assert PROJECT["project"]["version"] in heads
    assert heads[-1] == "0.1.0"
