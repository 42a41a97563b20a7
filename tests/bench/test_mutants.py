"""What `bench/mutants.py` changes, and what it leaves alone."""

from __future__ import annotations

import importlib.util
import os
import shutil
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


def test_what_a_function_does_at_its_end_anyway_stays(sites: ModuleType) -> None:
    source = "def f(x):\n    if x:\n        return None\n    x.go()\n    return None\n"
    assert [mutant.change for mutant in sites.mutants_of("x.py", source)] == [
        "x -> True",
        "x -> False",
        "return None -> pass",
        "x.go() -> pass",
    ]


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


PYPROJECT = """\
[tool.pytest.ini_options]
addopts = "--import-mode=importlib"
filterwarnings = ["error"]
"""
SOURCE = """\
import functools
from fivefold.toy.table import LIMIT

def called(a):
    if a > LIMIT:
        return a * 2
    return unseen(a)

def unseen(a):
    return a + 5

def elsewhere(a):
    return a + 1

def wraps(function):
    def inner(a):
        return function(a) - 1
    return inner

@wraps
def wrapped(a):
    return a + 10

@functools.cache
def kept(a):
    return a - 7
"""
HELD = """\
import os, subprocess, sys
import pytest
from fivefold.toy.code import called, kept, unseen, wrapped

@pytest.fixture(scope="module")
def ready():
    return wrapped(1)

def test_called():
    assert called(5) == 10
    assert called(4) == 8
    assert called(3) != 6

def test_first(ready):
    kept(8)

def test_second(ready):
    assert ready == 10
    assert kept(8) == 1

def test_in_a_process():
    program = "from fivefold.toy.code import elsewhere; assert elsewhere(2) == 3"
    subprocess.run([sys.executable, "-c", program], check=True)

def test_on_a_loaded_machine():
    unseen(1)
    with open(os.environ["RUNS"], "a") as runs:
        runs.write("1")
        assert runs.tell() <= 2
"""
ALIVE = [
    "src/fivefold/toy/code.py:10 5 -> 4",
    "src/fivefold/toy/code.py:10 5 -> 6",
    "src/fivefold/toy/code.py:10 a + 5 -> a - 5",
    "src/fivefold/toy/code.py:10 return a + 5 -> pass",
    "src/fivefold/toy/code.py:7 return unseen(a) -> pass",
]
"""What the tests leave open. They hold a constant of another file, what a process does, and what others make ready.

That on a loaded machine passes where no mutant is in, twice, and fails from then on whatever is in: it notices nothing.
"""


def test_a_run(tmp_path: Path) -> None:
    files = {
        "pyproject.toml": PYPROJECT,
        "src/fivefold/__init__.py": "",
        "src/fivefold/toy/__init__.py": "",
        "src/fivefold/toy/table.py": "LIMIT = 3\n",
        "src/fivefold/toy/code.py": SOURCE,
        "tests/toy/test_code.py": HELD,
        "tests/cli/test_none.py": "",
        "tests/report/test_none.py": "",
    }
    project, cache = tmp_path / "project", tmp_path / "cache"
    for name, text in files.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    (project / "bench").mkdir()
    for file in BENCH.glob("mut*"):
        shutil.copy(file, project / "bench")
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "TMPDIR": str(cache), "RUNS": str(tmp_path / "runs")}
    cache.mkdir()
    command = [sys.executable, project / "bench" / "mutants.py", "toy"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    blamed = "mutants: tests/toy/test_code.py::test_on_a_loaded_machine fails without any change as well"
    assert set(done.stderr.splitlines()) == {blamed}
    *alive, summary = done.stdout.splitlines()
    assert sorted(alive) == ALIVE
    assert summary == "32 mutants, 5 alive"
    assert done.returncode == 1
    assert {name: (project / name).read_text() for name in files} == files
    assert [file.name for file in cache.iterdir()] == ["fivefold-mutants"]
