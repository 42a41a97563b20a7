"""The same source gives the same results as Python, as native code and on an emulated CPU."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fivefold.metal.check.check import check
from fivefold.metal.program import Program
from fivefold.metal.run import host, interpreter

LANDMARK = 0x0123_4567  # as near as code must be that reaches it relative to itself
ASM = f"""
.globl landmark
landmark = {LANDMARK}
.text
.globl outside
outside:
    leaq 7(%rdi,%rsi,4), %rax
    ret
"""
EXTERNS = {"outside": lambda value, odd: value + 7 + 4 * odd, "landmark": LANDMARK}
CONSTRUCTS = Program(
    ("metal_constructs",),
    bindings={"metal_other.bound_shift": 39},
    replace={"metal_other.original": "metal_other.stand_in"},
)
SMALL = Program(("metal_small",))

EDGES = [0, 1, 2, 3, 7, 63, 64, 65, 0xFFF, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 63, (1 << 64) - 2, (1 << 64) - 1]
numbers = st.one_of(st.sampled_from(EDGES), st.integers(0, 200), st.integers(0, (1 << 64) - 1))
values = {"u64": numbers, "bool": st.booleans(), "str": st.sampled_from(["", "a", "page tables"])}


@pytest.fixture(scope="module")
def targets(emulated):
    """The program with every construct, loaded three times."""
    return SimpleNamespace(
        unit=check(CONSTRUCTS),
        instances=(
            interpreter.load(CONSTRUCTS, externs=EXTERNS),
            host.load(CONSTRUCTS, externs=EXTERNS),
            emulated(CONSTRUCTS, asm=ASM, prefix="x_"),
        ),
    )


def state(instance, unit, result):
    """What a call leaves behind that can be compared: result, variables, buffers."""
    variables = {unit.short(name): instance.get(unit.short(name)) for name in unit.variables}
    return result, variables, instance.read(instance.address("metal_constructs.BUF"), 256)


SOURCE = (Path(__file__).parents[1] / "programs" / "metal_constructs.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", re.findall(r"@export\ndef (\w+)", SOURCE))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_construct_agrees(targets, name, data):
    signature = targets.unit.functions[f"metal_constructs.{name}"].signature
    args = [data.draw(values[kind.value]) for _, kind in signature.parameters]
    outcomes = []
    for instance in targets.instances:
        result = instance.call(f"metal_constructs.{name}", *args)
        if signature.returns.value == "None":
            result = 0
        outcomes.append(state(instance, targets.unit, result))
    plain_outcome, *others = outcomes

    assert [plain_outcome] * 2 == others


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_programs_agree(make_module, random_programs, emulated, data):
    """Each program is compiled twice, so few programs with many functions and inputs."""
    name = make_module(data.draw(random_programs.modules(functions=10)))
    program = Program((name,))
    instances = (interpreter.load(program), host.load(program), emulated(program))
    for function in range(10):
        for args in data.draw(st.lists(st.tuples(numbers, numbers), min_size=3, max_size=3)):
            outcomes = []
            for instance in instances:
                instance.set(f"{name}.state", args[0] ^ 5)
                outcomes.append((instance.call(f"{name}.f{function}", *args), instance.get(f"{name}.state")))

            assert [outcomes[0]] * 2 == outcomes[1:]


@pytest.fixture(scope="module")
def small(emulated):
    """A program that 32-bit code can hold, as Python and on an emulated CPU in 32-bit mode."""
    return interpreter.load(SMALL), emulated(SMALL, arch="i386")


@pytest.mark.parametrize("name", ["arithmetic", "compare", "bits", "loops"])
@settings(max_examples=40, deadline=None)
@given(a=numbers, b=numbers)
def test_32_bit_code_agrees(small, name, a, b):
    python, cpu = small

    assert python.call(f"metal_small.{name}", a, b) == cpu.call(name, a, b)


@settings(max_examples=40, deadline=None)
@given(a=numbers)
def test_32_bit_chain_agrees(small, a):
    python, cpu = small

    assert python.call("metal_small.table", a) == cpu.call("table", a)


@settings(max_examples=20, deadline=None)
@given(a=numbers, b=numbers)
def test_32_bit_memory_agrees(small, a, b):
    python, cpu = small
    store = bytearray(b"\x55" * 80)
    at = python.map(store)
    cpu.write(cpu.SCRATCH, bytes(store))
    expected = python.call("metal_small.memory", at, a, b)
    python.unmap(at)

    assert expected == cpu.call("memory", cpu.SCRATCH, a, b)
    assert bytes(store) == cpu.read(cpu.SCRATCH, 80)
