"""Names found from the page tables on: image, kallsyms, BTF, modules, processes, and who owns which root."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from fivefold.arch import LA48, LA57, PagingMode
from fivefold.errors import FormatError, MemoryReadError
from fivefold.memory import Ram
from fivefold.survey.guest.roots import find_roots
from fivefold.survey.names.image_bytes import image_pieces, image_rows
from fivefold.survey.names.root_owners import root_owners
from fivefold.symbols import KernelSymbol
from fivefold.units import MIB, PhysAddr

BASE, AREA = 0xFFFF_FFFF_9A00_0000, 0xFFFF_FFFF_C000_0000
ROOT = 0x1000
KTHREAD = 0x20_0000


@pytest.fixture(params=["6.4 with four levels", "6.2 with five levels", "4.6 with four levels"])
def kernel(request: pytest.FixtureRequest, kernel_in_memory: Any) -> Any:
    """One that has a module and processes."""
    release, _, mode = request.param.partition(" with ")
    made = kernel_in_memory({"four levels": LA48, "five levels": LA57}[mode], release, typed=release != "4.6")
    filled(made)
    return made


def filled(kernel: Any) -> None:
    init = kernel.mm(ROOT, at=kernel.image.put(0x18_2000, bytes(0x100), "init_mm"))
    kernel.listed(
        kernel.task(2, "kthreadd", active=init, flags=KTHREAD), kernel.task(1, "init", mm=kernel.mm(ROOT), active=init)
    )
    kernel.loaded(kernel.module("toy", [(AREA, 0x1000)], [(AREA + 0x40, "T", "toy_open", 1)]))


def test_everything_from_the_tables_alone(kernel: Any) -> None:
    with kernel.finish() as space:
        names = space.names
        want = sorted(kernel.image.symbols)
        found = [one for one in names.kernel.spans[0] if not one.name.startswith("filler_")]
        assert [one[:3] for one in found] == want
        count, at = len(want) + 1300, names.kernel.how.rpartition(" ")[2]
        assert names.kernel.how == f"{count} names of the kernel's own kallsyms, at {at}"
        assert int.from_bytes(kernel.image.data[int(at, 16) - BASE - 8 :][:4], "little") == count
        assert names.symbols.how == f"{names.kernel.how}, and 1 module"
        assert names.symbols.at(AREA + 0x41) == "toy_open+0x1 [toy]"
        assert names.symbols.at(BASE + 0x105) == "filler_function_0+0x5"
        assert (names.symbols.address("init_task"), names.btf_is_missing) == (kernel.init_task, "")
        assert [(one.pid, one.name, one.root) for one in names.processes.processes] == [
            (2, "kthreadd", ROOT),
            (1, "init", ROOT),
        ]
        assert space.names is names and space.symbols is names.symbols


def test_modules_are_counted_once(kernel_in_memory: Any) -> None:
    kernel = kernel_in_memory(LA48)
    parts = [(AREA, 0x1000), (AREA + 0x2000, 0x1000)]
    two = kernel.module("two", parts, [(AREA, "t", "a", 1), (AREA + 0x2000, "d", "b", 1)])
    kernel.loaded(two, kernel.module("one", [(AREA + 0x4000, 0x1000)], [(AREA + 0x4000, "t", "c", 1)]))
    with kernel.finish() as space:
        assert space.symbols.how.endswith(", and 2 modules")


def test_modules_that_are_cut(kernel_in_memory: Any) -> None:
    kernel = kernel_in_memory(LA48)
    kernel.loaded(kernel.module("toy", [(AREA, 0x1000)], [(AREA, "t", "a", 1)]))
    kernel.word(kernel.modules, 0xFFFF_FFFF_9B00_0000)
    with kernel.finish() as space:
        assert "; without modules: the list of modules breaks off: " in space.symbols.how


@pytest.mark.parametrize("damage", ["none", "broken"])
def test_without_btf(kernel_in_memory: Any, damage: str) -> None:
    """Functions have names all the same; modules and processes do not, and why is told."""
    kernel = kernel_in_memory(LA48)
    filled(kernel)
    if damage == "none":
        kernel.image.put = lambda at, data, name, kind="D", put=kernel.image.put: (
            put(at, data, name, kind) if name != "__start_BTF" else 0
        )
    with kernel.finish(b"\1" * 0x40) as space:
        why = "no BTF in the kernel's image"
        if damage == "broken":
            why += " that can be read: BTF begins with 0x101, version 1; expected 0xeb9f and 1"
        assert (space.names.btf, space.names.btf_is_missing) == (None, why)
        assert space.symbols.how == f"{space.names.kernel.how}; without modules: {why}"
        assert space.names.processes.how == f"no processes: {why}"
        assert space.symbols.at(BASE) == "_text"


def test_without_kallsyms(kernel_in_memory: Any) -> None:
    """An image of which nothing but the tables is in memory, or next to nothing."""
    kernel = kernel_in_memory(LA48)
    filled(kernel)
    with kernel.finish() as space:
        assert space.symbols
        for at in (0x30_0000, 0x20_0000):
            kernel.ram.write(at, bytes(MIB))
    with kernel.built.space() as space:
        assert space.symbols.how == space.names.kernel.how == "no kallsyms in what is mapped of a kernel's image"
        assert space.names.processes.how == "no processes: no kallsyms in what is mapped of a kernel's image"
        assert not space.symbols and not space.names.processes.processes


def test_what_was_found_goes_with_the_memory(kernel_in_memory: Any) -> None:
    from fivefold.survey.names.kernel_names import _KNOWN

    kernel = kernel_in_memory(LA48)
    before = len(_KNOWN)
    with kernel.finish() as space, kernel.built.space() as other:
        assert space.names is not other.names and len(_KNOWN) == before + 2
        assert space.with_root(space.root.value, "again").names is space.names
    assert len(_KNOWN) == before


class TestSymbolsOfAFile:
    """System.map in place of kallsyms: moved to where the kernel lies, and held against its banner."""

    @pytest.fixture
    def space(self, kernel_in_memory: Any) -> Any:
        kernel = kernel_in_memory(LA48)
        filled(kernel)
        with kernel.finish() as space:
            yield space

    def write(self, path: Path, moved: int, *more: str) -> str:
        lines = {"_text": 0, "linux_banner": 0x1_0000, "a_function": 0x500, "init_task": 0x18_0000}
        path.write_text("\n".join([f"{BASE - moved + at:016x} T {name}" for name, at in lines.items()] + list(more)))
        return str(path)

    @pytest.mark.parametrize("moved", [0, 0x1900_0000])
    def test_a_file_of_the_build(self, space: Any, tmp_path: Path, moved: int) -> None:
        space.symbol_file = path = self.write(tmp_path / "System.map", moved)
        assert space.symbols.at(BASE + 0x503) == "a_function+0x3"
        how = f"{path}, a list of symbols" + (f", moved by {moved:#018x}" if moved else "")
        assert space.names.kernel.how == how
        assert space.symbols.how == f"{how}; without modules: no BTF in the kernel's image"

    def test_a_file_of_the_running_kernel(self, space: Any, tmp_path: Path) -> None:
        """Its modules are those that are there; those of another boot are left out."""
        line = f"{AREA + 0x40:016x} t theirs\t[mine]"
        space.symbol_file = self.write(tmp_path / "kallsyms", 0, line)
        assert space.symbols.at(AREA + 0x40) == "theirs [mine]"
        other = space.with_root(space.root.value, "again")
        other.symbol_file = self.write(tmp_path / "kallsyms.of.another.boot", 0x20_0000, line)
        assert other.symbols.at(AREA + 0x40) is None and other.symbols.at(BASE + 0x500) == "a_function"

    def test_a_file_of_another_kernel(self, space: Any, tmp_path: Path) -> None:
        space.symbol_file = path = self.write(tmp_path / "System.map", 0)
        text = Path(path).read_text().replace(f"{BASE + 0x1_0000:016x}", f"{BASE + 0x1_0008:016x}")
        Path(path).write_text(text)
        with pytest.raises(FormatError) as raised:
            _ = space.symbols
        assert str(raised.value) == (
            f"{path}, a list of symbols: linux_banner at {BASE + 0x1_0008:#018x} holds b'rsion 6.4.0 (t'; "
            "expected the symbols of this kernel"
        )

    def test_a_file_without_a_beginning(self, space: Any, tmp_path: Path) -> None:
        """Nothing to move it by, nor to hold it against."""
        path = tmp_path / "System.map"
        path.write_text(f"{BASE + 0x500:016x} T a_function\n")
        space.symbol_file = str(path)
        assert space.symbols.at(BASE + 0x500) == "a_function"
        assert space.names.kernel.how.endswith(", not moved: nothing shows where the code begins")


@pytest.mark.parametrize("mode", [LA48, LA57], ids=["la48", "la57"])
def test_reading_virtual_memory(kernel_in_memory: Any, mode: PagingMode) -> None:
    """Whatever is read across pages and the border of the image's halves is what was written there."""
    kernel = kernel_in_memory(mode)
    draw = random.Random(7)
    kernel.image.data[:] = draw.randbytes(2 * MIB)
    with kernel.built.space() as space:
        kernel.ram.write(0x30_0000, bytes(kernel.image.data[:MIB]))
        kernel.ram.write(0x20_0000, bytes(kernel.image.data[MIB:]))
        memory, data = kernel.parts(space)[0], kernel.image.data
        places = [0, MIB - 1, 2 * MIB - 0x2000, 0xFFF, 0x1000, *(draw.randrange(2 * MIB - 0x3000) for _ in range(50))]
        for at in places:
            for size in (0, 1, 7, 0x1000, 0x1001, 0x2000, draw.randrange(0x2000)):
                assert memory.read(BASE + at, size) == data[at : at + size]
            assert memory.word(BASE + at) == int.from_bytes(data[at : at + 8], "little")
            assert memory.half(BASE + at) == int.from_bytes(data[at : at + 4], "little")
            assert memory.phys(BASE + at) == (0x30_0000 + at if at < MIB else 0x20_0000 + at - MIB)
        assert memory.word(BASE + 8 - (1 << 64)) == memory.word(BASE + 8)  # addresses are modulo 2**64


def test_texts_of_virtual_memory(kernel_in_memory: Any) -> None:
    """Up to the NUL, at most so many bytes, and no page behind the text is read."""
    kernel = kernel_in_memory(LA48)
    end = 2 * MIB
    kernel.image.data[0x1FF8:0x2008] = b"ends \x07\xc3\xa4\xff\0fter\0"
    kernel.image.data[end - 4 :] = b"abc\0"
    kernel.ram.write(0x30_0000, bytes(kernel.image.data[:MIB]))
    kernel.ram.write(0x20_0000, bytes(kernel.image.data[MIB:]))
    with kernel.built.space() as space:
        memory = kernel.parts(space)[0]
        assert memory.text(BASE + 0x1FF8, 512) == r"ends \x07ä\xff"
        assert [memory.text(BASE + 0x1FF8, size) for size in (0, 1, 4, 5)] == ["", "e", "ends", "ends "]
        assert memory.text(BASE + end - 4, 512) == "abc"
        assert memory.text(BASE + end - 4, 3) == "abc"
        kernel.ram.write(0x30_0000 - 1, b"d")
        other = kernel.parts(space)[0]
        with pytest.raises(MemoryReadError, match=r"^test: virtual memory has no memory at 0xffffffff9a200000 \(\+1 "):
            other.text(BASE + end - 4, 512)
        assert memory.text(BASE + end - 4, 512) == "abc"  # a page is read once


class TestImage:
    """What is taken for the image, and its bytes."""

    def test_rows(self, kernel_in_memory: Any) -> None:
        """In the window, the kernel's own, physically contiguous."""
        kernel = kernel_in_memory(LA48)
        low, high = 0xFFFF_FFFF_8000_0000, 0xFFFF_FFFF_BFFF_F000
        kernel.built.page(low - 0x1000, 0x5003).page(high + 0x1000, 0x8003)  # outside
        kernel.built.page(low, 0x6001).page(high, 0x7001)
        kernel.built.page(low + 0x4000, 0x8005)  # a user's
        kernel.built.page(low + 0x6000, 0x9001).page(low + 0x7000, 0x5001)  # not contiguous
        kernel.built.page(low + 0x9000, 0x9001 | 1 << 51)  # beyond the CPU's width
        with kernel.built.space() as space:
            assert image_rows(space.overview) == [
                (low, 0x1000, 0x6000),
                (low + 0x9000, 0x1000, 1 << 51 | 0x9000),
                (BASE, MIB, 0x30_0000),
                (BASE + MIB, MIB, 0x20_0000),
                (high, 0x1000, 0x7000),
            ]

    def test_an_image_of_user_pages_that_lie_anywhere(self, build: Any) -> None:
        """As Xen's paravirtual guests map theirs: each page is looked up; what is not mapped ends a piece."""
        built = build(LA48, Ram.of_size(16 * MIB, start=0x1000))
        for number in range(512):
            built.page(BASE + 0x1000 * number, 0x40_0000 + 0x1000 * (number ^ 1) | 7)
        built.ram.write(PhysAddr(0x40_1000), b"first")
        built.ram.write(PhysAddr(0x40_0000), b"second")
        built.page(BASE + 0x1000 * 600, 0x70_0007)
        with built.space() as space:
            assert {(va, size) for va, size, _ in image_rows(space.overview)} >= {(BASE + 0x1000 * 600, 0x1000)}
            (piece,) = image_pieces(space.overview, space.source.memory, space.tables)
        assert (piece.start, len(piece.data)) == (BASE, 2 * MIB)
        assert piece.data[:5] == b"first" and piece.data[0x1000:0x1006] == b"second"

    def test_pieces(self, kernel_in_memory: Any) -> None:
        """Parts without a gap are one; what is not in memory is zero, and what nearly lacks all is no piece."""
        kernel = kernel_in_memory(LA48)
        data = random.Random(3).randbytes(2 * MIB)
        kernel.ram.write(0x30_0000, data[:MIB])
        kernel.ram.write(0x20_0000, data[MIB:])
        # 1 MiB at the end of memory, and as much behind that, where there is none; then one page less.
        kernel.built.pages(BASE + 4 * MIB, 2 * MIB, 0x30_0000 | 1)
        kernel.built.pages(BASE + 8 * MIB, 2 * MIB, 0x30_1000 | 1)
        kernel.built.pages(BASE + 12 * MIB, MIB - 0x1000, 0x20_0000 | 1)
        with kernel.built.space() as space:
            found = list(image_pieces(space.overview, space.source.memory, space.tables))
        assert [(piece.start, bytes(piece.data)) for piece in found] == [
            (BASE, data),
            (BASE + 4 * MIB, data[:MIB] + bytes(MIB)),
        ]


class TestOwners:
    """Whose a root is: processes, or the kernel itself."""

    def test_of_each_root(self, kernel: Any) -> None:
        with kernel.finish() as space:
            (root,) = find_roots(space.source)
            owners = root_owners(space.source, [root])
            assert [one.name for one in owners.of(root)] == ["init", "kthreadd"]  # who borrows comes last
            assert owners.labels == {ROOT: "init_mm"}
            assert owners.symbols_known_from == space.symbols.how
            assert owners.how == "the list at init_task, by the kernel's own BTF"
            assert [one.name for one in owners.processes] == ["kthreadd", "init"]

    def test_without_a_root(self, kernel_in_memory: Any) -> None:
        with kernel_in_memory(LA48).finish() as space:
            owners = root_owners(space.source, [])
            assert (owners.processes, owners.labels, owners.symbols_known_from) == ((), {}, None)
            assert owners.how == "no processes: no kernel's root"

    def test_without_symbols(self, kernel_in_memory: Any) -> None:
        kernel = kernel_in_memory(LA48)
        filled(kernel)
        with kernel.built.space() as space:
            owners = root_owners(space.source, find_roots(space.source))
        assert owners.how == "no processes: no kallsyms in what is mapped of a kernel's image"
        assert owners.symbols_known_from is None and owners.processes == () and owners.labels == {}


def test_symbols_of_the_kernel_say_which_they_are() -> None:
    assert str(KernelSymbol(1, "t", "name")) == "name" and str(KernelSymbol(1, "t", "name", "toy")) == "name [toy]"
