"""Every page can be found from README, every link leads somewhere, and every file that CONTRIBUTING names is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
THREAD = "Boot-time switching between 4- and 5-level paging"


def links(page: Path) -> Iterator[tuple[str, str]]:
    """Where the links of a page lead within the project: path and heading, each of them may be empty."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "code", text)):
        if "://" not in target:
            yield tuple(target.partition("#")[::2])


def headings(page: Path) -> set[str]:
    """The names by which links find the headings of a page: lower case, words joined by a hyphen."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def reachable(first: Path) -> set[Path]:
    found, ahead = {first}, [first]
    while ahead:
        page = ahead.pop()
        for path, _ in links(page):
            there = (page.parent / path).resolve()
            if there.suffix == ".md" and there.exists() and there not in found:
                found.add(there)
                ahead.append(there)
    return found


def test_every_page_can_be_found_from_the_readme() -> None:
    pages = {*(ROOT / "docs").rglob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "CHANGELOG.md"}

    assert sorted(pages - reachable(ROOT / "README.md")) == []


def test_every_link_leads_somewhere(page: Path) -> None:
    for path, heading in links(page):
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name} links {path}, which is not there"
        assert not heading or heading in headings(there), f"{there.name} has no heading {heading!r}"


def test_the_site_has_every_page() -> None:
    """Sphinx says so as well; this says it where there is no Sphinx."""
    index = (ROOT / "docs/index.md").read_text()
    listed = {line for block in re.findall(r"```\{toctree\}(.*?)```", index, re.DOTALL) for line in block.split()}
    pages = {path.relative_to(ROOT / "docs").with_suffix("").as_posix() for path in (ROOT / "docs").rglob("*.md")}

    assert pages - listed == {"index"}


def test_the_readme_names_the_thread_and_its_map() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())

    assert THREAD in text
    assert "(docs/proposal.md)" in text


def test_the_files_that_contributors_are_sent_to_are_there() -> None:
    named = re.findall(r"`((?:src|tests|bench|docs|\.ci)/[^\s`]*)`", (ROOT / "CONTRIBUTING.md").read_text())

    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []
