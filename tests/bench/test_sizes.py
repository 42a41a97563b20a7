"""Memories of 1 TiB take the memory of their tables: what `bench/sizes.py` measures of all commands, here of one."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fivefold.units import MIB, PAGE

ROOT = Path(__file__).parents[2]
RUNS = 70_000


@pytest.fixture(scope="module")
def bench() -> Iterator[Callable[[str], Any]]:
    """Modules of bench/ by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "bench"))
        yield importlib.import_module
    for name in ("sizes", "size_images", "measure"):
        sys.modules.pop(name, None)


Dump = Callable[..., list[list[str]]]


@pytest.fixture(scope="module")
def dump(bench: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Dump:
    """Rows of `fivefold dump`, which took little memory."""
    place = tmp_path_factory.mktemp("dumps")

    def rows(*words: str) -> list[list[str]]:
        with (place / "rows").open("wb") as out:
            taken = bench("sizes").run("dump", *words, "--format", "csv", out=out)
        assert (taken.status, taken.said) == (0, "") and taken.peak < 300 * MIB
        return [line.split(",")[:5] for line in (place / "rows").read_text().splitlines()]

    return rows


@pytest.fixture(scope="module")
def own_rows(bench: Callable[[str], Any], dump: Dump) -> list[list[str]]:
    """Those of the capture whose tables lie in the large memories."""
    rows = dump(str(bench("size_images").GUEST))
    assert len(rows) > 100
    return rows


def sparse_raw(images: Any, path: Path) -> Any:
    """The guest's tables in a raw image of 1 TiB, with a page in each 512 MiB."""
    guest, root = images.guest_pages()
    with path.open("wb") as file:
        file.truncate(images.TIB)
        for number, page in {**dict.fromkeys(range(1 << 20, images.TIB // PAGE, 1 << 17), b"\x01"), **guest}.items():
            file.seek(number * PAGE)
            file.write(page)
    return images.Made(path, ("--cr3", hex(root), "--levels", "4", "--ram-map", "0-1T"))


def isolated_runs(images: Any, path: Path) -> Any:
    """The guest's tables in a kdump of 1 TiB with 70,000 pages that do not touch each other."""
    guest, root = images.guest_pages()
    numbers = sorted({*guest, *range(0x20_0000, 0x20_0000 + 2 * RUNS, 2)})
    images.KdumpWriter(path, images.TIB // PAGE, numbers).write(guest.get(number, bytes(PAGE)) for number in numbers)
    return images.Made(path, ("--cr3", hex(root), "--levels", "4"))


@pytest.mark.parametrize("make", [sparse_raw, isolated_runs])
def test_a_dump_of_a_tebibyte_is_that_of_its_tables(
    make: Callable[..., Any], bench: Callable[[str], Any], dump: Dump, own_rows: list[list[str]], tmp_path: Path
) -> None:
    made = make(bench("size_images"), tmp_path / "memory")
    assert dump(str(made.path), *made.options) == own_rows
