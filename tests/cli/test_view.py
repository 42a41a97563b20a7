"""`fivefold view`: one page, whole, and safe whatever a source is called."""

from __future__ import annotations

import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fivefold.cli.main import main

GUEST = Path(__file__).parents[1] / "data" / "guests" / "plain-la57-kaslr.elf.xz"


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit status of a command."""
    monkeypatch.setattr(sys, "argv", ["fivefold", "view", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


class Reader(HTMLParser):
    """What a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]


def test_a_page(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    hostile = tmp_path / "<script>alert(1)<"
    shutil.copy(GUEST, hostile)
    page = tmp_path / "page.html"
    assert run(monkeypatch, str(hostile), "-o", str(page)) == 0
    text = page.read_text()
    assert capsys.readouterr().out == f"{page}: {len(text.encode())} bytes\n"
    reader = Reader()
    reader.feed(text)
    assert reader.loads == [] and "<script>alert" not in text
    assert all(word in text for word in ("direct_map", "0xff453d0a80000000", "executable-direct-map"))


def test_a_place_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, str(GUEST), "-o", str(tmp_path / "none" / "page.html")) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("entry", "said"), [(1 << 51 | 0x2007, "entry with reserved bits"), (0xF000_0007, "is not in memory")]
)
def test_wrong_tables_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, entry: int, said: str
) -> None:
    image, page = tmp_path / "wrong.img", tmp_path / "page.html"
    memory = bytearray(0x4000)
    memory[0x1000:0x1008] = entry.to_bytes(8, "little")
    image.write_bytes(memory)
    given = ["--cr3", "0x1000", "--levels", "4", "--phys-bits", "46"]
    assert run(monkeypatch, str(image), *given, "-o", str(page)) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and said in told
    assert told.removeprefix("fivefold: ").strip() in page.read_text()
