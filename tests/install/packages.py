"""The packages that an installation without extras brings, by the metadata of this one."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path


def closure(*names: str) -> list[str]:
    """*names* and what they need, extras left out, as far as it is installed here."""
    found: list[str] = []
    ahead = list(names)
    while ahead:
        name = re.sub(r"[-_.]+", "-", ahead.pop()).lower()
        if name in found:
            continue
        try:
            lines = requires(name) or []
        except PackageNotFoundError:  # for another system, or another Python
            continue
        found.append(name)
        ahead += [re.match(r"[\w.-]+", line)[0] for line in lines if "extra ==" not in line]
    return sorted(found)


def plain_packages() -> list[str]:
    """What pyproject.toml asks for without extras, and what that needs."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    return closure(*(re.match(r"[\w.-]+", line)[0] for line in project["dependencies"]))


if __name__ == "__main__":
    print(*plain_packages(), sep="\n")
