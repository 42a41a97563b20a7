"""Native code in this process: instances, the cache, guest memory by extents."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from fivefold.errors import CompileError, MemoryReadError
from fivefold.metal import build, cache, extents
from fivefold.metal.program import Program
from fivefold.metal.run import host, interpreter

TEXT = """
BUF: Final = buffer(8192, align=4096)
count: u64 = 3
width: u64 = 4
@extern
def outside(a: u64, odd: bool) -> bool: ...
@export
def add(a: u64) -> u64:
    global count
    count += a
    store64(BUF + 8, count)
    return count << width
@export
def ask(a: u64) -> bool:
    return outside(a, a == 4)
@export
def peek(at: u64) -> u64:
    return load64(at)
@export
def size(text: str) -> u64:
    n = 0
    while byte_at(text, n) != 0:
        n += 1
    return n
@export
def nothing() -> None:
    pass
"""


@pytest.fixture(scope="module")
def name(make_module):
    return make_module(TEXT)


def loaded(name, outside=lambda a, odd: odd, **options):
    return host.load(Program((name,), **options), externs={"outside": outside})


def test_instances_are_apart(name):
    first, second = loaded(name), loaded(name)

    assert first.call(f"{name}.add", 5) == 8 << 4
    assert (first.get(f"{name}.count"), second.get(f"{name}.count")) == (8, 3)
    assert second.read(second.address(f"{name}.BUF") + 8, 8) == bytes(8)
    second.set(f"{name}.count", (1 << 64) - 1)
    assert second.call(f"{name}.add", 2) == 1 << 4
    assert first.read(first.address(f"{name}.BUF") + 8, 1) == b"\x08"
    assert first.address(f"{name}.BUF") % 4096 == 0


def test_bound_variables(name):
    instance = loaded(name, bindings={f"{name}.width": 9})

    assert instance.call(f"{name}.add", 1) == 4 << 9
    assert instance.get(f"{name}.width") == 9
    with pytest.raises(ValueError, match=rf"{name}.width is bound in this build$"):
        instance.set(f"{name}.width", 4)


def test_externs_are_called_and_their_exceptions_come_through(name):
    def outside(a, odd):
        if a == 7:
            raise LookupError("seven")
        return odd

    instance = loaded(name, outside)

    assert (instance.call(f"{name}.ask", 4), instance.call(f"{name}.ask", 5)) == (1, 0)
    with pytest.raises(LookupError, match=r"seven"):
        instance.call(f"{name}.ask", 7)
    assert instance.call(f"{name}.ask", 4) == 1
    with pytest.raises(CompileError, match=r":\d+: extern outside is not given; pass externs=\{'outside': …\}$"):
        host.load(Program((name,)))


def test_memory_of_an_instance(name):
    instance = loaded(name)
    store = bytearray(b"page" + bytes(12))
    at = instance.map(store)

    assert instance.call(f"{name}.peek", at) == int.from_bytes(b"page", "little")
    instance.write(at + 4, b"s")
    assert store[:5] == b"pages"
    with pytest.raises(MemoryReadError):
        instance.read(at + 9, 8)
    instance.unmap(at)
    with pytest.raises(MemoryReadError):
        instance.read(at, 1)
    fixed = instance.map(b"read only, and long enough")
    with pytest.raises(TypeError, match=r"is read-only$"):
        instance.write(fixed, b"x")
    with pytest.raises(ValueError, match=r"^cannot map an empty buffer$"):
        instance.map(b"")


def test_text_and_none(name):
    instance = loaded(name)

    assert instance.call(f"{name}.size", "five-fold é") == 12
    assert instance.call(f"{name}.size", b"ab") == 2
    assert instance.call(f"{name}.nothing") == 0
    with pytest.raises(ValueError, match=r"size: a text cannot hold a NUL$"):
        instance.call(f"{name}.size", "a\0b")
    with pytest.raises(KeyError, match=r"no root function"):
        instance.call(f"{name}.missing")


def test_machine_state_is_refused(make_module):
    name = make_module(
        "@export\ndef f() -> u64:\n    return rdtsc()\n@export\ndef g() -> u64:\n    return read_cr3()\n"
    )
    with pytest.raises(CompileError, match=r":11: read_cr3 on the host; replace the function that uses it$"):
        host.load(Program((name,)))


def test_cpuid_and_time_are_there(make_module):
    name = make_module(
        "@export\ndef f() -> u64:\n    pause()\n    return rdtsc()\n"
        "@export\ndef v() -> u64:\n    return cpuid(0, 0, 0)\n"
    )
    instance = host.load(Program((name,)))

    assert instance.call(f"{name}.f") < instance.call(f"{name}.f")
    assert 0 < instance.call(f"{name}.v") < 0x100


WARM = """
import sys
sys.path[:0] = sys.argv[1:3]
from fivefold.metal.run import host
from fivefold.metal.program import Program
instance = host.load(Program((sys.argv[3],)), externs={"outside": lambda a, odd: True})
names = ("llvmlite", "fivefold.metal.check.check", sys.argv[3])
print(instance.call(sys.argv[3] + ".add", 1), *(name in sys.modules for name in names))
"""


def run_fresh(make_module, name, **environment):
    """Load the program in a process of its own; return what it printed."""
    run = subprocess.run(
        [sys.executable, "-I", "-c", WARM, str(make_module.place), str(Path(__file__).parents[1] / "programs"), name],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.strip()


def test_warm_start_imports_no_compiler(make_module, tmp_path):
    name = make_module(TEXT)
    cold = run_fresh(make_module, name, FIVEFOLD_CACHE=str(tmp_path))
    warm = run_fresh(make_module, name, FIVEFOLD_CACHE=str(tmp_path))

    assert cold.split() == ["64", "True", "True", "True"]
    assert warm.split() == ["64", "False", "False", "False"]


def test_edited_source_is_compiled_again(make_module, tmp_path):
    name = make_module("STEP: Final = 2\n" + TEXT.replace("count += a", "count += a * STEP"))
    before = run_fresh(make_module, name, FIVEFOLD_CACHE=str(tmp_path))
    make_module("STEP: Final = 3\n" + TEXT.replace("count += a", "count += a * STEP"), name=name)
    after = run_fresh(make_module, name, FIVEFOLD_CACHE=str(tmp_path))

    assert (before.split()[0], after.split()[0]) == ("80", "96")


def test_edited_dependency_is_noticed(make_module, monkeypatch, tmp_path):
    monkeypatch.setenv("FIVEFOLD_CACHE", str(tmp_path))
    other = make_module("N: Final = 5\n")
    name = make_module(f"from {other} import N\n@export\ndef f() -> u64:\n    return N\n")
    assert host.load(Program((name,))).call(f"{name}.f") == 5
    make_module("N: Final = 6\n", name=other)
    make_module(f"from {other} import N\n@export\ndef f() -> u64:\n    return N\n", name=name)

    assert host.load(Program((name,))).call(f"{name}.f") == 6


def test_damaged_entries_are_made_again(make_module, tmp_path):
    name = make_module(TEXT)
    run_fresh(make_module, name, FIVEFOLD_CACHE=str(tmp_path))
    for entry in tmp_path.iterdir():
        data = bytearray(entry.read_bytes())
        data[-1] ^= 1
        entry.write_bytes(data)
    assert run_fresh(make_module, name, FIVEFOLD_CACHE=str(tmp_path)).split()[:2] == ["64", "True"]
    for entry in tmp_path.iterdir():
        entry.write_bytes(entry.read_bytes()[:40])

    assert run_fresh(make_module, name, FIVEFOLD_CACHE=str(tmp_path)).split()[:2] == ["64", "True"]
    assert run_fresh(make_module, name, FIVEFOLD_CACHE=str(tmp_path)).split()[:2] == ["64", "False"]


def test_works_where_nothing_can_be_written(make_module, monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv("FIVEFOLD_CACHE", str(blocked / "below"))
    name = make_module(TEXT)

    assert loaded(name).call(f"{name}.add", 1) == 64
    assert cache.lookup("anything") is None


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("FIVEFOLD_CACHE", str(tmp_path / "own"))
    assert cache.directory() == tmp_path / "own"
    monkeypatch.setenv("FIVEFOLD_CACHE", "")
    assert cache.directory() is None
    monkeypatch.delenv("FIVEFOLD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.directory() == tmp_path / "fivefold"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.directory() == tmp_path / ".cache" / "fivefold"
    monkeypatch.setenv("HOME", "relative")
    assert cache.directory() is None, "nothing is written into the working directory"


def test_get_or_make(monkeypatch, tmp_path):
    monkeypatch.setenv("FIVEFOLD_CACHE", str(tmp_path / "new"))
    made = []

    def make():
        made.append(1)
        return b"image"

    assert [cache.get_or_make("key", make) for _ in range(3)] == [b"image"] * 3
    assert cache.get_or_make("other key", make) == b"image"
    assert len(made) == 2
    assert not list((tmp_path / "new").glob(".*"))


def test_any_damage_to_an_entry_is_noticed(monkeypatch, tmp_path):
    monkeypatch.setenv("FIVEFOLD_CACHE", str(tmp_path))
    cache.store("key", b"some native code")
    (entry,) = tmp_path.iterdir()
    good = entry.read_bytes()
    for at in range(len(good)):
        entry.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
        assert cache.lookup("key") is None
        entry.write_bytes(good[:at])
        assert cache.lookup("key") is None
    entry.write_bytes(good)

    assert cache.lookup("key") == b"some native code"


def test_old_entries_are_dropped(monkeypatch, tmp_path):
    monkeypatch.setenv("FIVEFOLD_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "_MOST_ENTRIES", 8)
    for number in range(20):
        cache.store(f"key {number}", b"x")

    assert len(list(tmp_path.iterdir())) <= 8
    assert cache.lookup("key 19") == b"x"


def test_cached_object(make_module, monkeypatch, tmp_path):
    monkeypatch.setenv("FIVEFOLD_CACHE", str(tmp_path))
    program = Program((make_module(TEXT),))
    first = build.cached_object(program, prefix="a_", asm=".globl x\nx: ret\n")
    monkeypatch.setattr("fivefold.metal.emit.objects.emit", None)

    assert build.cached_object(program, prefix="a_", asm=".globl x\nx: ret\n") == first
    with pytest.raises(TypeError):
        build.cached_object(program, prefix="b_", asm=".globl x\nx: ret\n")


def test_result_of_a_file_edited_while_running_is_not_kept(make_module, monkeypatch, tmp_path):
    """Its constants may stem from an import before the edit."""
    monkeypatch.setenv("FIVEFOLD_CACHE", str(tmp_path))
    name = make_module(TEXT)
    os.utime(make_module.place / f"{name}.py")
    loaded(name)

    assert not list(tmp_path.iterdir())


def test_result_of_an_edited_compiler_is_not_kept(make_module, monkeypatch, tmp_path):
    """A process that imported the compiler before an edit would file its code under the compiler after it."""
    monkeypatch.setenv("FIVEFOLD_CACHE", str(tmp_path))
    edited = tmp_path.parent / f"{tmp_path.name}.py"
    edited.write_text("")
    monkeypatch.setattr(build, "_compiler", lambda: [edited])
    loaded(make_module(TEXT))

    assert not list(tmp_path.iterdir())


EXTENTS = Program(
    ("fivefold.metal.extents",),
    roots=tuple(
        f"fivefold.metal.extents.{name}" for name in ("phys_to_page", "any_page", "phys_to_virt", "frame_index")
    ),
)
BANKS = """
# start   size    pages that can be seen
0x1800    0x2900  0x2000-0x3fff
0x8000    0x1000  0x8000-0x8fff
0x9000    0x3000  0x9000-0xbfff
0x100000  0x0fff  none
0x200010  0x2000  0x201000-0x201fff
"""


@pytest.mark.parametrize("load", [interpreter.load, host.load])
def test_extents_show_whole_pages_and_nothing_else(load):
    instance = load(EXTENTS)
    rows = [line.split() for line in BANKS.strip().splitlines()[1:]]
    banks = [(int(start, 16), bytearray(int(size, 16))) for start, size, _ in rows]
    ranges = [tuple(int(end, 16) for end in span.split("-")) for *_, span in rows if span != "none"]
    attached = extents.attach(instance, list(reversed(banks)))
    index = 0
    for low, high in ranges:
        for pa in (low, low + 4095, high - 8, high):
            start, data = next((s, d) for s, d in banks if s <= pa < s + len(d))
            data[pa - start] = pa * 7 & 0xFF
            assert instance.read(instance.call("extents.phys_to_page", pa), 1)[0] == pa * 7 & 0xFF
            assert instance.call("extents.any_page", pa) == instance.call("extents.phys_to_page", pa)
            assert instance.call("extents.frame_index", pa) == index + (pa - low) // 4096
        index += (high + 1 - low) // 4096
    for pa in (0x1FFF, 0x4000, 0x7FFF, 0xC000, 0x100000, 0x200FFF, 0x202000, 0x8000 + (1 << 52), (1 << 64) - 1):
        assert instance.call("extents.phys_to_page", pa) == instance.call("extents.any_page", pa) == 0
        assert instance.call("extents.frame_index", pa) == extents.NO_FRAME
    assert instance.get("extents.frames") == index
    extents.check_misses(instance)
    stray = instance.call("extents.phys_to_virt", 0x4008)
    assert stray == instance.address("extents.STRAY") + 8
    with pytest.raises(MemoryReadError, match=r"the attached memory has no memory at 0x0000000000004008"):
        extents.check_misses(instance)
    attached.close()
    assert instance.call("extents.phys_to_page", 0x8000) == instance.call("extents.any_page", 0x8000) == 0
    banks[0][1].append(0)


@pytest.mark.parametrize("width", [22, 28, 40, 52, 64], ids="up to 2^{}".format)
@pytest.mark.parametrize("load", [interpreter.load, host.load])
def test_any_number_of_extents_anywhere(load, width):
    """Near each other and far apart, so that chunks have one extent, several, a part of one, and none."""
    dice = random.Random(width)
    frames = sorted({dice.getrandbits(width - 12) for _ in range(40)} | {dice.getrandbits(10) for _ in range(40)})
    banks = {frame << 12: bytearray(4096 * dice.randint(1, min(6, after - frame))) for frame, after in pairwise(frames)}
    instance = load(EXTENTS)
    attached = extents.attach(instance, list(banks.items()))
    for _ in range(300):
        pa = (dice.choice(frames) << 12) + dice.randint(-8192, 6 * 4096) & (1 << 64) - 1
        start, data = max((bank for bank in banks.items() if bank[0] <= pa), default=(0, b""))
        inside = pa - start < len(data)
        if inside:
            data[pa - start] = marked = dice.randint(1, 255)
        for lookup in ("phys_to_page", "any_page"):
            found = instance.call(f"extents.{lookup}", pa)
            assert (found != 0) == inside
            assert not inside or instance.read(found, 1)[0] == marked
    attached.close()


def test_extents_may_not_overlap():
    with pytest.raises(ValueError, match=r"^banks overlap at 0x0000000000002000$"):
        extents.attach(interpreter.load(EXTENTS), [(0x1000, bytearray(0x2000)), (0x2000, bytearray(0x1000))])
