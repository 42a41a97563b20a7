"""Code that comes with a wheel: used without a compiler, and only for the sources that it was made from."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fivefold.errors import MachineError
from fivefold.metal import prebuilt
from fivefold.metal.program import Program
from fivefold.metal.run import host, native

TEXT = "state: u64 = 5\n@export\ndef add(a: u64) -> u64:\n    return a + state\n"
CPU = native.this_cpu()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where code is looked for."""
    monkeypatch.setattr(prebuilt, "_PLACE", tmp_path)
    prebuilt._read.cache_clear()
    yield tmp_path
    prebuilt._read.cache_clear()


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIVEFOLD_CACHE", "")
    monkeypatch.setitem(sys.modules, "llvmlite", None)


def deliver(place: Path, *programs: Program, cpu: str = CPU) -> bytes:
    code = prebuilt.pack(programs, cpu)
    (place / f"{cpu}.code").write_bytes(code)
    return code


def test_it_runs_without_a_compiler(place, make_module, monkeypatch):
    name, other = make_module(TEXT), make_module(TEXT.replace("+", "*"))
    deliver(place, Program((name,)), Program((other,)), Program((other,), {f"{other}.state": 4}))
    monkeypatch.setenv("FIVEFOLD_CACHE", "")
    monkeypatch.setitem(sys.modules, "llvmlite", None)

    assert host.load(Program((name,))).call(f"{name}.add", 3) == 8
    assert host.load(Program((other,))).call(f"{other}.add", 3) == 15
    assert host.load(Program((other,), {f"{other}.state": 4})).call(f"{other}.add", 3) == 12


@pytest.mark.usefixtures("alone")
def test_what_is_not_there_names_the_extra(place, make_module):
    with pytest.raises(MachineError, match=r"llvmlite .*; install it with: pip install 'fivefold\[compile\]'$"):
        host.load(Program((make_module(TEXT),)))


def test_edited_sources_and_damaged_code_count_as_absent(place, make_module):
    name = make_module(TEXT)
    program = Program((name,))
    good = deliver(place, program)
    assert prebuilt.find(program, CPU) is not None

    (place / f"{CPU}.code").write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    prebuilt._read.cache_clear()
    assert prebuilt.find(program, CPU) is None

    (place / f"{CPU}.code").write_bytes(good)
    prebuilt._read.cache_clear()
    path = make_module.place / f"{name}.py"
    path.write_text(path.read_text().replace("= 5", "= 6"))
    assert prebuilt.find(program, CPU) is None


def test_equal_sources_give_equal_bytes_for_each_cpu(make_module):
    program = Program((make_module(TEXT),))
    made = {cpu: prebuilt.pack([program], cpu) for cpu in native.CPUS}

    assert made == {cpu: prebuilt.pack([program], cpu) for cpu in native.CPUS}
    assert len(set(made.values())) == len(native.CPUS)


@pytest.mark.parametrize("machine", ["riscv64", "i686", "s390x"])
def test_another_cpu_is_told_what_there_is_code_for(machine, monkeypatch):
    class Uname:
        pass

    Uname.machine = machine
    monkeypatch.setattr(native.os, "uname", Uname)

    with pytest.raises(MachineError, match=rf"^no prebuilt code fits this CPU \({machine}\), and fivefold\[compile\]"):
        host.load(Program(()))
