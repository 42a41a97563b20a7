from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fivefold.arch import Access, AddressSpace, Allowed, ControlState, Cpu, Kind, access
from fivefold.conform.vectors import schema_text, write_vectors
from fivefold.units import PhysAddr, VirtAddr

EXAMPLE = Path(__file__).parents[2] / "examples" / "walker_vectors.py"


def document(count: int = 300) -> dict[str, object]:
    out = io.StringIO()
    write_vectors(out, count, 1, ("la48", "la57"))
    return json.loads(out.getvalue())  # type: ignore[no-any-return]


class Words:
    def __init__(self, words: dict[int, int]) -> None:
        self.words = words

    def read(self, pa: PhysAddr, size: int, /) -> bytes:
        return self.words.get(pa, 0).to_bytes(size, "little")


def test_a_vector_says_all_that_its_outcome_follows_from() -> None:
    """Each is judged again from the document alone."""
    data = document()
    assert (data["schema"], data["count"], len(data["vectors"])) == ("fivefold.vectors/1", 300, 300)  # type: ignore[arg-type]
    for one in data["vectors"]:  # type: ignore[attr-defined]
        numbers = {name: value if name == "cpl" else int(value, 16) for name, value in one["registers"].items()}
        state = ControlState(**numbers)
        words = Words({int(word["at"], 16): int(word["value"], 16) for word in one["memory"]})
        space = AddressSpace.from_state(words, state, Cpu(phys_bits=46))
        asked = one["access"]
        how = Access(Kind(asked["kind"]), asked["size"], asked["implicit"], asked["stack"])
        found = access(space, state, VirtAddr(int(asked["va"], 16)), how)
        assert isinstance(found, Allowed) == one["outcome"]["allowed"], one["id"]
        if isinstance(found, Allowed):
            assert [hex(page.pa) for page in found.pages] == [page["pa"] for page in one["outcome"]["pages"]]
        else:
            assert (found.vector, hex(found.error_code)) == (one["outcome"]["vector"], one["outcome"]["error_code"])


def test_the_schema_names_what_is_there() -> None:
    schema = json.loads(schema_text())
    wanted = set(schema["$defs"]["vector"]["required"])
    assert all(set(one) == wanted for one in document(20)["vectors"])  # type: ignore[attr-defined]


def walk(program: Path, path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(program), str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_example_walks_them(tmp_path: Path) -> None:
    path = tmp_path / "vectors.json"
    path.write_text(json.dumps(document()))
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith(" 0 wrong\n")
    broken = EXAMPLE.read_text().replace("level in (2, 3)", "level in (2,)")
    (tmp_path / "broken.py").write_text(broken)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "broken.py"), str(path)], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 1


@pytest.mark.parametrize("walker", ["fivefold.arch", pytest.param("drgn", marks=pytest.mark.drgn)])
def test_walkers_are_held_against_them(scores: dict[str, str], walker: str) -> None:
    told = [text for name, text in scores.items() if re.fullmatch(rf"[45] levels: {walker}( [\d.]+)?", name)]
    if walker == "drgn" and not os.environ.get("FIVEFOLD_REQUIRE_DRGN"):
        pytest.importorskip("drgn")
    assert len(told) == 2
    for text in told:
        kinds = {kind: int(number.replace(",", "")) for number, _, kind in (p.partition(" ") for p in text.split("; "))}
        assert kinds.pop("right") > 60
        # drgn does not look at reserved bits, and says so of no page.
        assert set(kinds) <= (set() if walker == "fivefold.arch" else {"an address, where the CPU faults"})


@pytest.fixture(scope="module")
def scores() -> dict[str, str]:
    command = [sys.executable, "bench/peer_vectors.py", "--count", "80", "--memprocfs", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=EXAMPLE.parents[1])
    assert done.returncode == 0, done.stderr
    rows: dict[str, str] = json.loads(done.stdout)["results"]
    return rows
