"""What `bench/mutants.py` changes, and what it leaves alone."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[2] / "bench"

CHANGES = {
    "a = b < c": ["b < c -> b <= c", "b < c -> b >= c"],
    "a = (b) is not (c)": ["(b) is not (c) -> (b) is (c)"],
    "a = b not in c": ["b not in c -> b in c"],
    "a = b and c and d": ["b and c and d -> b or c and d", "b and c and d -> b and c or d"],
    "a = b << 0x1F": ["b << 0x1F -> b >> 0x1F", "0x1F -> 0x20", "0x1F -> 0x1e"],
    "a += b": ["a += b -> a -= b"],
    "a = not b": ["not b -> (b)"],
    "a = True": ["True -> False"],
    "if a: b()": ["a -> True", "a -> False"],
    "while a: b()": ["a -> False"],
    "a = (b  # + is not meant here\n     + c)": ["b # + is not meant here + c -> b # + is not meant here - c"],
    "def f():\n    g()\n    return 'x'": ["g() -> pass", "return 'x' -> pass"],
    "def f(a: int | None = 3) -> int | None: ...": ["3 -> 4", "3 -> 2"],
    'def f():\n    """Says 1 + 1."""': [],
    "def f():\n    raise ValueError(f'{1 + 1}' + str(2))": ["raise ValueError(f'{1 + 1}' + str(2)) -> pass"],
    "a: 'int | None' = b": [],
    "A = Annotated[int, 1 < 2]": [],
    "a = f'{b + 1}'": [],
    "if TYPE_CHECKING: import b": [],
    "assert a < b": [],
}


@pytest.fixture(scope="module")
def sites() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutation_sites", BENCH / "mutation_sites.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("source", CHANGES)
def test_changes(sites: ModuleType, source: str) -> None:
    assert [mutant.change for mutant in sites.mutants_of("x.py", source)] == CHANGES[source]


def test_a_mutant_is_its_source_with_one_token_changed(sites: ModuleType) -> None:
    source = "# ä\ndef f(a):\n    return 'ä' if a > 4 else a\n"
    for mutant in sites.mutants_of("x.py", source):
        changed = source.encode()[: mutant.start] + mutant.new.encode() + source.encode()[mutant.end :]
        compile(changed, "x.py", "exec")
        assert changed != source.encode()


def test_a_draw_does_not_depend_on_lines_elsewhere(sites: ModuleType) -> None:
    source = "def f(a):\n    return a + 1\n"
    before = [mutant.rank(7, 0) for mutant in sites.mutants_of("x.py", source)]
    after = [mutant.rank(7, 0) for mutant in sites.mutants_of("x.py", f"import os\n\n{source}")]
    assert before == after
    assert before != [mutant.rank(8, 0) for mutant in sites.mutants_of("x.py", source)]


def test_a_folder_that_is_not_there() -> None:
    asked = subprocess.run([sys.executable, BENCH / "mutants.py", "nowhere"], capture_output=True, text=True)
    assert asked.returncode != 0
    assert "no folder of src/fivefold" in asked.stderr
