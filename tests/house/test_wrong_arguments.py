"""Public functions refuse arguments of a wrong type by name, and spaces that were closed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import fivefold as ff

GUEST = Path(__file__).parents[1] / "data" / "guests" / "plain-la57-kaslr.elf.xz"
WRONG = ["x", b"x", 5, 1.5, None, [5], object()]
"""Values that are nothing that a public function takes first, but for the text and the None below."""

FITS: dict[str, tuple[object, ...]] = {
    "boot": ("x",), "explain": ("x", None), "linux_areas": ("x",), "load_policy": ("x",), "open": ("x",),
    "open_source": ("x",),
}  # fmt: skip
"""What is no wrong type for a function: a name, of which it says something else, or nothing given."""

REST: dict[str, tuple[object, ...]] = {
    "access": (0x1000,), "diff": ("x",), "find_mappings": ([range(1)],), "linux_areas": (5,),
    "root_spaces": (ff.GivenPaging(),), "search_memory": (b"x", 1), "translate": (0x1000,), "walk": (0x1000,),
}  # fmt: skip
"""The other arguments that a function needs."""

NAMED = {"boot": "cpus", "explain": "log", "Space": "source", "find_mappings": "(one of )?spaces"}
NO_ARGUMENT = {"build_image", "PhysAddr", "VirtAddr"}


def functions() -> list[str]:
    names = ["open", *ff.__all__, "boot", "explain", "Space"]
    values = {name: getattr(ff, name) for name in names if name not in NO_ARGUMENT | {"open_space"}}
    return [
        name
        for name, value in values.items()
        if name in NAMED or (callable(value) and not isinstance(value, type | ModuleType))
    ]


CALLS = [
    (name, wrong) for name in dict.fromkeys(functions()) for wrong in WRONG if wrong not in FITS.get(name, ())
]  # fmt: skip


@pytest.mark.parametrize(("name", "wrong"), CALLS, ids=[f"{name}-{type(wrong).__name__}" for name, wrong in CALLS])
def test_a_first_argument_of_a_wrong_type_is_named(name: str, wrong: object) -> None:
    function = getattr(ff, name)
    first = NAMED.get(name) or next(iter(inspect.signature(function).parameters))
    with pytest.raises(TypeError, match=f"^{first} is ") as raised:
        told = function(wrong, *REST.get(name, ()))
        if isinstance(told, Iterator):
            next(told)
    assert "; expected " in str(raised.value)


def test_all_functions_are_asked() -> None:
    assert {name for name, _ in CALLS} >= {"walk", "stats", "diff", "find_roots", "load_policy", "boot", "explain"}
    assert len({name for name, _ in CALLS}) >= 17


@pytest.fixture(scope="module")
def space() -> Iterator[ff.Space]:
    with ff.open(str(GUEST)) as opened:
        yield opened


LATER: list[tuple[str, Callable[[Any], object]]] = [
    ("after is 'x'; expected Space", lambda s: ff.diff(s, "x")),  # type: ignore[arg-type]
    ("settings is 5; expected DiffSettings or None", lambda s: ff.diff(s, s, 5)),  # type: ignore[arg-type]
    ("source is <Space of", lambda s: ff.find_roots(s)),
    ("levels is '5'; expected an integer", lambda s: ff.find_roots(s.source, "5")),  # type: ignore[arg-type]
    ("spaces is <Space of", lambda s: ff.find_mappings(s, [range(5)])),
    ("targets is 5; expected several ranges", lambda s: ff.find_mappings([s], 5)),  # type: ignore[arg-type]
    ("one of targets is 5; expected range", lambda s: ff.find_mappings([s], [5])),  # type: ignore[list-item]
    ("memory is <Space of", lambda s: ff.search_memory(s, b"x", 1)),
    ("pattern is 'x'; expected bytes", lambda s: ff.search_memory(s.source.memory, "x", 1)),  # type: ignore[arg-type]
    ("limit is '1'; expected an integer", lambda s: ff.search_memory(s.source.memory, b"x", "1")),  # type: ignore[arg-type]
    ("version is 6.1; expected the release as text, such as '6.1'", lambda s: ff.linux_areas(6.1, 5)),  # type: ignore[arg-type]
    ("levels is '5'; expected an integer", lambda s: ff.linux_areas("6.1", "5")),  # type: ignore[arg-type]
    ("given is 5; expected GivenPaging", lambda s: ff.root_spaces(s.source, 5)),  # type: ignore[arg-type]
    ("window is 5; expected range or None", lambda s: ff.regions_with_repeats(s, 5)),  # type: ignore[arg-type]
    ("options is 5; expected BootOptions or None", lambda s: ff.boot(("la57",), 5)),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("said", "call"), LATER, ids=[said[:30] for said, _ in LATER])
def test_a_later_argument_of_a_wrong_type_is_named(said: str, call: Callable[[Any], object], space: ff.Space) -> None:
    with pytest.raises(TypeError) as raised:
        call(space)
    assert str(raised.value).startswith(said)


def test_a_policy_is_named_like_a_file(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text('schema = "fivefold.policy/1"\n')

    assert ff.load_policy(str(path)).name == ff.load_policy(path).name == str(path)
    with pytest.raises(FileNotFoundError):
        ff.load_policy(str(tmp_path / "none"))


CLOSED: dict[str, Callable[[ff.Space], object]] = {
    "walk": lambda s: list(ff.walk(s, 0x401000)),
    "translate": lambda s: ff.translate(s, 0x401000),
    "Space.translate": lambda s: s.translate(0x401000),
    "Space.path": lambda s: s.path(0x401000),
    "Space.with_root": lambda s: s.with_root(s.root.value, "test"),
    "Space": lambda s: ff.Space(s.source),
    "access": lambda s: ff.access(s, 0x401000, user=True),
    "regions": lambda s: list(ff.regions(s)),
    "regions_with_repeats": lambda s: list(ff.regions_with_repeats(s)),
    "audit": lambda s: ff.audit(s),
    "stats": lambda s: ff.stats(s),
    "diff": lambda s: ff.diff(s, s),
    "find_mappings": lambda s: ff.find_mappings([s], [range(4096)]),
    "search_memory": lambda s: ff.search_memory(s.source.memory, b"ab", 1),
    "find_roots": lambda s: ff.find_roots(s.source),
    "root_spaces": lambda s: ff.root_spaces(s.source, s.given),
    "translator_of": lambda s: ff.translator_of(s),
    "explain": lambda s: ff.explain(memory=s, cr2=5, vector=14, error_code=0),
}


@pytest.mark.parametrize("name", CLOSED)
def test_a_closed_space_says_so(name: str) -> None:
    space = ff.open(str(GUEST))
    assert not space.closed and not space.source.closed
    space.close()
    with pytest.raises(ValueError, match=r" is closed: .*plain-la57-kaslr"):
        CLOSED[name](space)
    assert space.closed and space.source.closed
