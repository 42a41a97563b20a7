"""What a user sees of the package: names, types, and one answer to one question however it is asked."""

from __future__ import annotations

import ast
import builtins
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import fivefold as ff
from fivefold.memory.open_source import SourceKeywords
from fivefold.survey.space import SpaceKeywords

TESTS = Path(__file__).parents[1]
SCRIPT = Path(__file__).with_name("user_script.py")
GUEST = TESTS / "data" / "guests" / "plain-la57-kaslr.elf.xz"
SOURCE = Path(ff.__file__ or "")
CODE, TEXT = 0xFFFF_FFFF_BE40_0000, 0x40_1000


def python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_users_script_passes_mypy_and_runs(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert "Success" in python("-m", "mypy", "--strict", f"--cache-dir={cache}", str(SCRIPT))
    told = python(str(SCRIPT), str(GUEST), f"{TEXT:x}")

    assert "0x0000000000401000 -> 0x000000001eb98000 4K page r-xu" in told
    assert "#PF(0x7) 0x0000000000401000 at PT: write to a read-only page" in told
    assert "executable-direct-map" in told


@pytest.mark.parametrize("line", ["ff.open(PATH, levls=5)", "ff.walk(PATH, 5)", "ff.regions(SPACE)[0]"])
def test_a_users_mistakes_are_found_by_mypy(line: str, tmp_path: Path) -> None:
    script = tmp_path / "wrong.py"
    script.write_text(f"import fivefold as ff\nPATH = ''\nSPACE = ff.open(PATH)\n{line}\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={TESTS.parent / '.mypy_cache'}", str(script)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip

    assert done.returncode == 1, done.stdout


def type_checkers_names() -> set[str]:
    """The names that type checkers see."""
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.asname or alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }


def test_every_public_name_is_there_typed_and_described() -> None:
    assert type_checkers_names() == set(ff.__all__)
    for name in ff.__all__:
        value = getattr(ff, name)
        if isinstance(value, type) or callable(value):
            assert value.__doc__ or name.endswith("Addr"), name


def test_each_public_name_is_the_one_of_its_home() -> None:
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    for node in block.body:
        if isinstance(node, ast.ImportFrom) and node.module != "fivefold":
            for alias in node.names:
                assert getattr(import_module(str(node.module)), alias.name) is not None
                home = ff._HOME[alias.name]  # type: ignore[attr-defined]
                assert home == node.module, alias.name


def test_a_star_import_replaces_no_builtin() -> None:
    names: dict[str, object] = {}
    exec("from fivefold import *", names)

    assert [name for name in names if hasattr(builtins, name) and name != "__builtins__"] == []
    assert ff.open is ff.open_space


@pytest.mark.parametrize("name", ["explain", "boot"])
def test_a_function_named_like_its_package_can_be_called_again_and_again(name: str) -> None:
    told = python("-c", f"import fivefold as ff; ff.{name}; import fivefold.{name}; print(callable(ff.{name}))")

    assert told == "True\n"


def test_keywords_are_the_fields_of_the_options() -> None:
    source, given = ff.SourceOptions.__dataclass_fields__, ff.GivenPaging.__dataclass_fields__
    assert set(SourceKeywords.__annotations__) == set(source)
    assert set(SpaceKeywords.__annotations__) == {*source, *given}


@pytest.fixture(scope="module")
def space() -> ff.Space:
    return ff.open(str(GUEST))


def test_a_space_and_its_tables_give_the_same_answers(space: ff.Space) -> None:
    for va in (CODE, TEXT, 0x1234):
        assert ff.translate(space, va) == ff.translate(space.tables, va) == space.translate(va)
        assert list(ff.walk(space, va)) == list(ff.walk(space.tables, va))


def test_regions_of_tables_are_regions(space: ff.Space) -> None:
    window = range(CODE, CODE + (1 << 26))
    ours = list(ff.regions(space.tables, window, ignore=0))
    theirs = [region._replace(area=None) for region in ff.regions(space, window)]

    assert len(ours) > 5 and all(isinstance(region, ff.Region) for region in ours)
    assert [r[:2] for r in ours] == [r[:2] for r in theirs]
    assert [(r.kind, r.level, r.rights, r.size) for r in ours] == [(r.kind, r.level, r.rights, r.size) for r in theirs]
    assert [r.phys for r in ours] == [r.phys for r in theirs]


def test_an_access_is_decided_by_the_registers_of_the_guest(space: ff.Space) -> None:
    by_user = ff.access(space, ff.Access(ff.Kind.READ, va=CODE), user=True)
    assert isinstance(by_user, ff.Fault) and by_user.error_code == 5
    assert isinstance(ff.access(space, CODE, ff.FETCH, user=False), ff.Allowed)
    assert isinstance(ff.access(space, TEXT, ff.FETCH, user=False), ff.Allowed)
    state = replace(ff.ControlState.long(ff.LA57, space.root.value), cr4=0x16B0 | 1 << 20)
    smep = ff.access(space, TEXT, ff.FETCH, state=state)
    assert isinstance(smep, ff.Fault) and smep.rule is ff.Rule.SMEP
    assert ff.access(space, TEXT, ff.FETCH, state=state) == ff.access(space.tables, state, TEXT, ff.FETCH)


def test_an_access_that_turns_on_what_is_not_known_is_refused(space: ff.Space) -> None:
    cpu = replace(space.source.cpus[0], segments={})
    bare = ff.Space(replace(space.source, cpus=(cpu,)))
    with pytest.raises(ff.NotKnownError, match="does not hold the privilege level, on which the answer turns"):
        ff.access(bare, CODE, ff.READ)
    with pytest.raises(ff.NotKnownError, match=r"does not hold EFER\.NXE, on which the answer turns"):
        ff.access(bare, CODE, ff.FETCH, user=True)  # the error code says so, or not
    assert isinstance(ff.access(bare, CODE, ff.FETCH, user=False), ff.Allowed)
    with pytest.raises(ff.NotKnownError, match="does not hold CR0 and CR4 of CPU 0"):
        ff.access(ff.Space(replace(space.source, cpus=()), ff.GivenPaging(cr3=space.root.value)), CODE, ff.READ)


def wrong_calls() -> list[tuple[str, Callable[[ff.Space], object], type[Exception]]]:
    call: Callable[..., object] = lambda name, *a, **k: getattr(ff, name)(*a, **k)  # noqa: E731 - no types to heed
    guest = str(GUEST)
    return [
        ("open() got an unexpected keyword argument 'levls'; did you mean 'levels'?",
         lambda s: call("open", guest, levls=5), TypeError),
        ("cr3 is '0x1000'; expected an integer", lambda s: call("open", guest, cr3="0x1000"), TypeError),
        ("levels is True; expected an integer", lambda s: call("open", guest, levels=True), TypeError),
        ("6 levels of page tables; expected 4 or 5", lambda s: call("open", guest, levels=6), ValueError),
        ("timeout is '5'; expected float or int", lambda s: call("open", guest, timeout="5"), TypeError),
        ("live_ram is 'no': unknown way to read RAM; expected one of auto, file, process, pmemsave",
         lambda s: call("open", guest, live_ram="no"), ValueError),
        ("spec is 5; expected the name of a file, or qmp:SOCKET, libvirt:DOMAIN, pid:NUMBER, gdb:HOST:PORT",
         lambda s: call("open", 5), TypeError),
        ("space is 'x'; expected Space or AddressSpace", lambda s: call("walk", "x", 5), TypeError),
        ("va is '5'; expected an integer", lambda s: call("translate", s, "5"), TypeError),
        ("va is 1.5; expected an integer", lambda s: s.translate(1.5), TypeError),  # type: ignore[arg-type]
        ("va is -0x1; expected a number from 0 to 2**64-1", lambda s: call("walk", s, -1), ValueError),
        ("va is None; expected the address in Access(…, va=…), or as the second argument",
         lambda s: call("access", s, ff.READ), ValueError),
        ("access() got an unexpected keyword argument 'usr'; did you mean 'user'?",
         lambda s: call("access", s, CODE, usr=True), TypeError),
        ("how is 'write'; expected Access", lambda s: call("access", s, CODE, "write"), TypeError),
        ("kind is 'write'; expected Kind.READ, Kind.WRITE or Kind.FETCH",
         lambda s: call("Access", "write"), TypeError),
        ("window is (0, 5); expected range or None", lambda s: call("regions", s, (0, 5)), TypeError),
        ("regions() got an unexpected keyword argument 'contigous'; did you mean 'contiguous'?",
         lambda s: call("regions", s, contigous=True), TypeError),
        ("policy is 'p.toml'; expected a Policy, as of load_policy(), or None",
         lambda s: call("audit", s, "p.toml"), TypeError),
        ("explain() got an unexpected keyword argument 'cr5'; did you mean 'cr4'?",
         lambda s: call("explain", memory=s, cr5=1), TypeError),
        ("cr2 is '5'; expected an integer", lambda s: call("explain", memory=s, cr2="5"), TypeError),
        ("log is 5; expected the name of a file, an open file, a Trace or None",
         lambda s: call("explain", 5), TypeError),
        ("memory is '512M'; expected an integer", lambda s: call("BootOptions", memory="512M"), TypeError),
    ]  # fmt: skip


@pytest.mark.parametrize(("message", "call", "kind"), wrong_calls(), ids=[row[0][:40] for row in wrong_calls()])
def test_a_wrong_argument_is_named(
    message: str, call: Callable[[ff.Space], object], kind: type[Exception], space: ff.Space
) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        call(space)


@pytest.mark.parametrize("call", ["open", "explain", "open_source"])
def test_a_missing_file_is_an_oserror_and_one_of_ours(call: str) -> None:
    with pytest.raises(ff.FivefoldError) as raised:
        getattr(ff, call)("/nowhere/at/all")

    assert isinstance(raised.value, FileNotFoundError) and isinstance(raised.value, ff.MissingFileError)
    assert raised.value.filename == "/nowhere/at/all" and raised.value.errno == 2
    assert str(raised.value).endswith("/nowhere/at/all: No such file or directory")


@pytest.mark.parametrize("name", ["cli", "kernel", "metal", "report", "survey"])
def test_a_private_package_says_so(name: str) -> None:
    assert name not in ff.__all__
    assert "public" in (import_module(f"fivefold.{name}").__doc__ or "")


@pytest.mark.parametrize("name", [name for name in ff.__all__ if isinstance(getattr(ff, name), ModuleType)])
def test_a_public_package_names_what_is_public(name: str) -> None:
    package = import_module(f"fivefold.{name}")
    assert package.__all__ and all(hasattr(package, one) for one in package.__all__)


DOCS = sorted((TESTS.parent / "docs").rglob("*.md"))
INTERNAL = ("fivefold.kernel", "fivefold.metal")
"""What docs show for those who work on it: docs/kernel.md and docs/metal.md say so."""


@pytest.mark.parametrize("page", [TESTS.parent / "README.md", *DOCS], ids=lambda page: page.name)
def test_examples_use_public_names_only(page: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for line in "".join(blocks).splitlines():
        if found := re.match(r"(?:>>> )?from (fivefold[\w.]*) import (.*)", line):
            module, names = found[1], found[2].split(", ")
            assert is_public(module, names), line


def is_public(module: str, names: list[str]) -> bool:
    if module.startswith(INTERNAL):
        return True
    package = module.partition(".")[2]
    if package not in ff.__all__:
        return False
    return names == ["*"] or set(names) <= set(import_module(module).__all__)
