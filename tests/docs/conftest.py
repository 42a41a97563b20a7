"""The pages that people read, and what is in them: links, commands, and Python."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = (
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "bench/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
)

_PLACEHOLDER = re.compile(
    r"\b(SOURCE|FILE|LOG|ADDRESS|PYTHON|FOLDER|NAME|COMMAND|PATH|ID|SOCKET|DOMAIN|KERNEL)\b|\[-|…"
    r"|\bbzImage\b|\.deb\b|matrix --bisect`?$"  # kernels that a reader has
    r"|--engine (?:bochscpu|kvm)\b"  # no package of Debian's
)
_PROGRAMS = r"(?:fivefold|qemu-system-x86_64|mkdir)"


class Block(NamedTuple):
    """Lines of a page between fences, or indented by four spaces, and the number of the first."""

    language: str
    line: int
    lines: tuple[str, ...]


class Command(NamedTuple):
    """A command as a reader would copy it, the lines that are shown under it (None: none are), and where it is."""

    where: str
    text: str
    shown: tuple[str, ...] | None


def blocks(page: Path) -> Iterator[Block]:
    """What a page sets apart from its prose, in order; each run of indented lines is a block without a language."""
    fence: str | None = None
    begun, lines = 0, list[str]()
    for number, line in enumerate([*page.read_text().splitlines(), ""], 1):
        indented = fence is None and line.startswith("    ")
        if line.startswith("```") or (fence == "indented" and not line.startswith("    ")):
            if fence is not None:
                yield Block("" if fence == "indented" else fence, begun, tuple(lines))
                fence, lines = None, []
            elif line.startswith("```"):
                fence, begun = line[3:].strip(), number + 1
        elif indented:
            fence, begun, lines = "indented", number, [line[4:]]
        elif fence is not None:
            lines.append(line[4:] if fence == "indented" else line)


def commands(page: Path) -> Iterator[Command]:
    """Each command of a page that can be run as it stands, in order: none with a placeholder for a file."""
    yield from sorted(_commands(page), key=lambda one: int(one.where.rpartition(":")[2]))


def _commands(page: Path) -> Iterator[Command]:
    name = page.relative_to(ROOT).as_posix()
    for block in blocks(page):
        if block.language == "":
            yield from _of_block(name, block)
    for number, line in enumerate(page.read_text().splitlines(), 1):
        for text in re.findall(rf"`({_PROGRAMS} [^`]+ [^`]+)`", line):
            if not _PLACEHOLDER.search(text):
                yield Command(f"{name}:{number}", text, None)


def _of_block(name: str, block: Block) -> Iterator[Command]:
    joined = re.sub(r" \\\n\s*", " ", "\n".join(block.lines)).splitlines()
    for at, line in enumerate(joined):
        where = f"{name}:{block.line + at}"
        if line.startswith("$ "):
            rest = joined[at + 1 :]
            end = next((i for i, below in enumerate(rest) if below.startswith("$ ")), len(rest))
            yield Command(where, line[2:], tuple(rest[:end]))
        elif re.match(rf"{_PROGRAMS} ", line) and not _PLACEHOLDER.search(line):
            yield Command(where, line, None)


def once(found: Iterable[Command]) -> list[Command]:
    """Drop what another page shows as well, unless it is shown with what it prints."""
    kept: dict[tuple[str, tuple[str, ...] | None], Command] = {}
    for one in found:
        kept.setdefault((one.text.partition("#")[0].strip(), one.shown), one)
    return list(kept.values())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for a `page`, a `command` or a `snippet` runs for each that there is."""
    if "page" in metafunc.fixturenames:
        metafunc.parametrize("page", PAGES, ids=[page.relative_to(ROOT).as_posix() for page in PAGES])
    if "command" in metafunc.fixturenames:
        found = once(command for page in PAGES for command in commands(page))
        metafunc.parametrize("command", found, ids=[f"{one.where} {one.text[:40].strip()}" for one in found])
    if "snippet" in metafunc.fixturenames:
        shown = [(page, block) for page in PAGES for block in blocks(page) if block.language == "python"]
        metafunc.parametrize("snippet", [block for _, block in shown], ids=[f"{p.stem}:{b.line}" for p, b in shown])
