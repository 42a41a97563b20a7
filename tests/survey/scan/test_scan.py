"""The host's driver of the scan: buffers, chunks, settings, refusals, hostile images, real captures."""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fivefold.arch import LA48, LA57, AddressSpace, Content, Cpu, Vendor, regions
from fivefold.errors import MemoryReadError
from fivefold.memory import open_source
from fivefold.metal.run import interpreter
from fivefold.survey.scan import scan as module
from fivefold.survey.scan import scan_buffers
from fivefold.survey.scan.scan import TableScanner, leaves_of, scan_space
from fivefold.survey.scan.scan_result import ALL_FLAGS, Contiguity, RegionKind, ScanResult, ScanSettings, expand_leaves
from fivefold.units import PhysAddr

GUESTS = Path(__file__).parents[2] / "data" / "guests"
BASE = 0x10_0000
P, W, U, PS, G, NX = 1, 2, 4, 1 << 7, 1 << 8, 1 << 63


def chain_of_tables(leaves: dict[int, int], levels: int = 4) -> tuple[bytes, PhysAddr]:
    """One table for each level, each in slot 1 of the one above, and *leaves* in the lowest."""
    tables = np.zeros((levels, 512), np.uint64)
    for slot, entry in leaves.items():
        tables[0, slot] = entry
    for level in range(1, levels):
        tables[level, 1] = BASE + 0x1000 * (level - 1) | P | W | U
    return tables.astype("<u8").tobytes(), PhysAddr(BASE + 0x1000 * (levels - 1))


def scattered(count: int) -> tuple[bytes, PhysAddr]:
    """*count* leaves that never merge."""
    return chain_of_tables({2 * i: 0x7000_0000 | P | W for i in range(count)})


FIRST = (1 << 39) + (1 << 30) + (1 << 21)
"""What the lowest table maps first."""


def test_columns() -> None:
    data, root = chain_of_tables({0: 0x7000 | P | W | U, 1: 0x8000 | P | W | U, 3: 0x9000 | P | NX, 4: 0xB000 | P | NX})
    result = scan_space([(BASE, data)], root, 4)
    assert result.start.tolist() == [FIRST, FIRST + 0x3000]
    assert result.last.tolist() == [FIRST + 0x1FFF, FIRST + 0x4FFF]
    assert result.size.tolist() == [0x2000, 0x2000]
    assert result.phys.tolist() == [0x7000, 0x9000]
    assert result.flags.tolist() == [P | W | U, P | NX]
    assert result.kind.tolist() == [RegionKind.MAPPED, RegionKind.MAPPED]
    assert result.level.tolist() == [1, 1]
    assert result.writable.tolist() == [True, False]
    assert result.user.tolist() == [True, False]
    assert result.executable.tolist() == [True, False]
    assert result.contiguous.tolist() == [True, False]
    assert leaves_of(result) == 4
    assert repr(result) == "<ScanResult root 0x0000000000103000, 4 levels: 2 ranges, 0x4000 bytes, 4 tables>"


def test_leaves_are_told_one_by_one_after_a_scan_that_breaks_at_jumps() -> None:
    data, root = chain_of_tables({0: 0x7000 | P, 1: 0x8000 | P, 2: 0xA000 | P})
    leaves = expand_leaves(scan_space([(BASE, data)], root, 4, ScanSettings(contiguity=Contiguity.BREAK)))
    assert leaves.tolist() == [(FIRST + 0x1000 * i, pa, P, 1) for i, pa in enumerate((0x7000, 0x8000, 0xA000))]


def test_what_was_not_asked_cannot_be_told() -> None:
    data, root = scattered(1)
    result = scan_space([(BASE, data)], root, 4, ScanSettings(contiguity=Contiguity.IGNORE))
    with pytest.raises(ValueError, match=r"^the scan ignored physical contiguity; ask with NOTE or BREAK$"):
        _ = result.contiguous
    with pytest.raises(ValueError, match=r"^leaves can be separated only after a scan with Contiguity.BREAK$"):
        expand_leaves(result)


def test_too_many_ranges_is_a_clear_stop() -> None:
    data, root = scattered(100)
    with pytest.raises(module.TooManyRuns) as caught:
        scan_space([(BASE, data)], root, 4, max_ranges=99)
    assert str(caught.value) == "the tables at 0x0000000000103000 unfold into more than 99 runs"
    assert len(scan_space([(BASE, data)], root, 4, max_ranges=100)) == 100


def test_a_root_that_is_not_memory() -> None:
    data, _ = scattered(1)
    with pytest.raises(MemoryReadError) as caught:
        scan_space([(BASE, data)], PhysAddr(0x9000), 4)
    assert str(caught.value) == "the scanned memory has no memory at 0x0000000000009000 (+4096 bytes)"


def test_only_four_or_five_levels() -> None:
    with pytest.raises(ValueError, match=r"^3 levels of page tables; expected 4 or 5$"):
        scan_space([(BASE, bytes(4096))], PhysAddr(BASE), 3)


@pytest.mark.parametrize("room", [2, 3, 50])
def test_the_buffer_grows(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_RANGES", room)
    data, root = scattered(200)
    assert scan_space([(BASE, data)], root, 4).start.tolist() == [FIRST + 0x2000 * i for i in range(200)]


@pytest.mark.parametrize("chunk", [0, 1, 2, 3, 64, 200, 1000])
def test_a_stream_gives_the_same_in_chunks(chunk: int) -> None:
    """However many are left over at the end; a chunk has one row at least."""
    for count in (1, 2, 3, 4, 200):
        data, root = scattered(count)
        chunks = list(TableScanner([(BASE, data)]).stream(root, 4, chunk=chunk))
        assert all(0 < len(rows) <= max(chunk, 1) for rows in chunks)
        assert np.concatenate(chunks)["start"].tolist() == [FIRST + 0x2000 * i for i in range(count)]
    with pytest.raises(MemoryReadError):
        list(TableScanner([(BASE, data)]).stream(PhysAddr(BASE + (1 << 40)), 4, chunk=chunk))


def test_a_result_stays_as_it_is_while_the_scanner_goes_on() -> None:
    data, root = scattered(3)
    scanner = TableScanner([(BASE, data)])
    kept = scanner.scan(root, 4)
    other = scanner.scan(root, 4, ScanSettings(first=FIRST + 0x2000))
    assert (len(kept), len(other)) == (3, 2)
    starts = kept.start
    del kept, other
    gc.collect()
    again = [scanner.scan(root, 4, ScanSettings(first=FIRST + 0x4000)) for _ in range(3)]
    assert starts.tolist() == [FIRST + 0x2000 * i for i in range(3)]
    assert [len(result) for result in again] == [1, 1, 1]


def test_small_results_that_are_kept_share_one_buffer() -> None:
    data, root = scattered(3)
    scanner, made = TableScanner([(BASE, data)]), []
    real = scan_buffers.memory
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan_buffers, "memory", lambda size: made.append(size) or real(size))
        kept = [scanner.scan(root, 4) for _ in range(40)]
    assert len(kept) == 40 and sum(size for size in made if size == scan_buffers._RANGE_BYTES << 20) < 64 << 20


def test_reserved_bits_follow_from_the_cpu() -> None:
    data, root = chain_of_tables({0: 0x7000 | P, 1: 1 << 45 | P, 2: 0x8000 | P | NX})

    def kinds(cpu: Cpu, nxe: bool = True) -> list[int]:
        return scan_space([(BASE, data)], root, 4, ScanSettings.for_cpu(cpu, nxe)).kind.tolist()

    mapped, malformed = RegionKind.MAPPED, RegionKind.MALFORMED
    assert kinds(Cpu(phys_bits=46)) == [mapped, mapped]
    assert kinds(Cpu(phys_bits=45)) == [mapped, malformed, mapped]
    assert kinds(Cpu(phys_bits=45), nxe=False) == [mapped, malformed, malformed]


def test_bit_8_of_a_top_entry_is_reserved_on_amd() -> None:
    table = np.zeros((1, 512), np.uint64)
    table[0, 0] = 0x7000 | P | G
    banks = [(BASE, table.tobytes())]
    intel, amd = (ScanSettings.for_cpu(Cpu(vendor=vendor)) for vendor in (Vendor.INTEL, Vendor.AMD))
    assert scan_space(banks, PhysAddr(BASE), 4, intel).kind.tolist() == [RegionKind.UNREADABLE]
    assert scan_space(banks, PhysAddr(BASE), 4, amd).kind.tolist() == [RegionKind.MALFORMED]


def guarded(image: bytes) -> memoryview:
    """*image* up against a page that cannot be touched: reading past its end ends the process."""
    memory = mmap.mmap(-1, (len(image) // 4096 + 2) * 4096)
    end = len(memory) - 4096
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + end), ctypes.c_size_t(4096), 0) == 0
    memory[end - len(image) : end] = image
    return memoryview(memory)[end - len(image) : end]


entries = st.builds(
    lambda frame, flags, wild: frame << 12 | flags | wild,
    st.one_of(st.integers(0xFE, 0x105), st.integers(0, (1 << 40) - 1)),
    st.integers(0, 0x1FF),
    st.sampled_from((0, 0, 0, 1 << 63, 1 << 62, 0xFFF << 52)),
)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 511), entries), max_size=40),
    st.sampled_from((4, 5)),
    st.integers(0, 8191),
)
def test_hostile_tables_end_and_stay_inside(found: list[tuple[int, int, int]], levels: int, short: int) -> None:
    """Whatever is in memory, the answer is `arch`'s, or a clear stop; a bank need not end at a page's end."""
    tables = np.zeros((4, 512), np.uint64)
    for table, slot, entry in found:
        tables[table, slot] = entry | P
    image = tables.astype("<u8").tobytes()[: 0x4000 - short]
    scanner = TableScanner([(BASE, guarded(image))])
    try:
        result = scanner.scan(PhysAddr(BASE), levels, ScanSettings(flags=ALL_FLAGS), max_ranges=4096)
    except module.TooManyRuns:
        return
    assert np.all(result.start[1:] > result.last[:-1])
    assert np.all(result.start <= result.last)
    mode = LA57 if levels == 5 else LA48
    assert all(mode.is_canonical(int(end)) for end in (*result.start, *result.last))
    assert result.counts.tables_walked <= 4 * levels * scan_buffers.RIGHTS + 1


@pytest.mark.parametrize("levels", [4, 5])
def test_plain_python_gives_the_same(levels: int) -> None:
    rng = random.Random(levels)
    tables = np.zeros((6, 512), np.uint64)
    for table in range(6):
        for slot in rng.sample(range(512), 6):
            tables[table, slot] = BASE + 0x1000 * rng.randrange(7) | rng.choice((P, P | W, P | PS, P | NX | U))
    banks = [(BASE, tables.astype("<u8").tobytes())]
    native, stepped = TableScanner(banks), TableScanner(banks, load=interpreter.load)
    one, other = (scanner.scan(PhysAddr(BASE), levels) for scanner in (native, stepped))
    assert len(one) > 10
    assert np.array_equal(one.rows, other.rows)
    assert one.counts == other.counts


def capture_names() -> list[str]:
    return sorted(path.name.removesuffix(".elf.xz") for path in GUESTS.glob("*.elf.xz"))


def scan_capture(name: str, how: ScanSettings) -> tuple[ScanResult, AddressSpace]:
    facts = json.loads((GUESTS / f"{name}.facts.json").read_text())
    root = PhysAddr(int(facts["cpus"][0]["cr3"], 16) & ~0xFFF)
    mode = LA57 if facts["levels"] == 5 else LA48
    source = open_source(str(GUESTS / f"{name}.elf.xz"))
    return scan_space(source.memory.banks(), root, mode.top, how), AddressSpace(source.memory, root, mode)


@pytest.mark.parametrize("name", ["kasan-la57-nokaslr", "debian-la57-kaslr-pti", "debian-no5lvl-kaslr"])
def test_real_guests_against_arch(name: str) -> None:
    """Range by range, as `arch` reads the same capture; KASAN's 3,333 tables and ESPfix's 65,536 ranges included."""
    # Under KASAN one page of zeros is mapped billions of times: where it repeats, physical memory jumps.
    breaks = "kasan" not in name
    contiguity = Contiguity.BREAK if breaks else Contiguity.NOTE
    result, space = scan_capture(name, ScanSettings(flags=ALL_FLAGS & ~0x60, contiguity=contiguity))
    content = {
        Content.MAPPED: RegionKind.MAPPED,
        Content.MALFORMED: RegionKind.MALFORMED,
        Content.UNREADABLE: RegionKind.UNREADABLE,
    }
    expected = list(regions(space, contiguous=breaks))
    assert len(expected) > 100
    assert result.start.tolist() == [run.start for run in expected]
    assert (result.last + np.uint64(1)).tolist() == [run.end & (1 << 64) - 1 for run in expected]
    assert result.phys.tolist() == [run.phys for run in expected]
    assert result.kind.tolist() == [content[run.content] for run in expected]
    mapped = result.kind == RegionKind.MAPPED
    assert result.level[mapped].tolist() == [run.level for run in expected if run.content is Content.MAPPED]
    assert result.flags[mapped].tolist() == [run.flags for run in expected if run.content is Content.MAPPED]
    rights = zip(result.writable.tolist(), result.user.tolist(), result.executable.tolist(), strict=True)
    assert list(rights) == [tuple(run.rights) for run in expected]


def test_kasan_is_walked_once() -> None:
    """A guest of 3,330 tables, some of them mapped thousands of times."""
    result, _ = scan_capture("kasan-la57-nokaslr", ScanSettings(repeat_above=64))
    assert (result.counts.tables_met, result.counts.tables_walked) == (3330, 3333)
    assert result.counts.malformed_entries == result.counts.unreadable_tables == 0
    assert int(result.repeats.sum()) > 0
    assert len(result) < 20_000


def test_captures_are_there() -> None:
    assert len(capture_names()) >= 8
