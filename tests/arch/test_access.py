from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from fivefold.arch import (
    CR3_LAM_U48,
    CR3_LAM_U57,
    LA48,
    LA57,
    RFLAGS_AC,
    TABLE,
    Access,
    AddressSpace,
    Allowed,
    Cause,
    ControlState,
    Cpu,
    Cr0,
    Cr4,
    Efer,
    Entry,
    Fault,
    Frames,
    Kind,
    Level,
    Verdict,
    access,
    accessed_and_dirty,
    map_page,
    untagged,
)
from fivefold.errors import MemoryReadError
from fivefold.memory import Ram
from fivefold.units import PhysAddr, VirtAddr, hex64

CPU = Cpu(phys_bits=42)
CR4_WORDS = {"smep": Cr4.SMEP, "smap": Cr4.SMAP, "pke": Cr4.PKE, "pks": Cr4.PKS}
MODES = {"la48": LA48, "la57": LA57}


def with_word(state: ControlState, word: str) -> ControlState:
    """One word of the state column."""
    if word in CR4_WORDS:
        return replace(state, cr4=state.cr4 | int(CR4_WORDS[word]))
    name, _, value = word.partition("=")
    return {
        "-wp": lambda: replace(state, cr0=state.cr0 & ~int(Cr0.WP)),
        "-nxe": lambda: replace(state, efer=state.efer & ~int(Efer.NXE)),
        "ac": lambda: replace(state, rflags=state.rflags | RFLAGS_AC),
        "cpl3": lambda: replace(state, cpl=3),
        "pkru": lambda: replace(state, pkru=int(value, 16)),
        "pkrs": lambda: replace(state, pkrs=int(value, 16)),
    }[name]()


def parse_access(text: str) -> tuple[Access, VirtAddr]:
    what, _, address = text.partition(" at ")
    kind, *words = what.split()
    size = next((int(word) for word in words if word.isdigit()), 1)
    return Access(Kind(kind), size, "implicit" in words, "stack" in words), VirtAddr(int(address, 16))


def spell(verdict: Verdict) -> str:
    if isinstance(verdict, Allowed):
        return " ".join(["ok", *(f"{page.pa:#x}" for page in verdict.pages)])
    level = verdict.level.name if verdict.level else "-"
    return f"{verdict.vector.name} {verdict.error_code:#x} {verdict.rule.name} {level} {hex64(verdict.va)}"


def test_access(tree: Ram, access_vector: list[str]) -> None:
    words, text, want = access_vector
    if "pke" in words or "pkr" in words:  # else bit 43 of PT[4] and NX of PT[5] count
        tree.write(PhysAddr(0x5020), (0xD007 | 5 << 59).to_bytes(8, "little"))
        tree.write(PhysAddr(0x5028), (0xE003 | 5 << 59).to_bytes(8, "little"))
    state = ControlState.long(LA57, 0x1000)
    for word in words.split():
        state = with_word(state, word)
    how, va = parse_access(text)

    assert spell(access(AddressSpace.from_state(tree, state, CPU), state, va, how)) == want


def one_page(rw: int, xd: int, user: int) -> AddressSpace:
    """A page at 0xff11_0000_0000_1000 whose path allows just this; each right is lost at another level."""
    ram = Ram.of_size(0x8000, start=0x1000)
    space = AddressSpace(ram, PhysAddr(0x1000), LA57, CPU)
    place = VirtAddr(0xFF11_0000_0000_1000)
    map_page(ram, space, place, Entry(0x9000 | TABLE, Level.PT), Frames(ram, PhysAddr(0x2000), 4))
    for level, lost in ((5, 0 if rw else 2), (3, 0 if user else 4), (1, xd << 63)):
        at = PhysAddr({5: 0x1000 + 8 * 273, 3: 0x4000, 1: 0x2008}[level])
        raw = int.from_bytes(ram.read(at, 8), "little")
        assert raw & 7 == 7
        ram.write(at, (raw ^ lost).to_bytes(8, "little"))
    return space


def fits(pattern: str, value: str) -> bool:
    return pattern in ("*", value)


def decide(rows: list[list[str]], who: str, does: str, page: str, bits: list[str]) -> str:
    """The verdict of the first row that fits."""
    for row_who, row_does, row_page, path, state, verdict in rows:
        patterns = [row_who, row_does, row_page, *path.split(), *state.split()]
        if all(map(fits, patterns, [who, does, page, *bits])):
            return verdict
    raise AssertionError(f"no row for {who} {does} {page} {bits}")


def test_access_rights_exhaustively(vectors: dict[str, list[list[str]]]) -> None:
    spaces = {(rw, xd, user): one_page(rw, xd, user) for rw, xd, user in product((0, 1), repeat=3)}
    words = ("-wp", "smep", "smap", "ac")
    for rw, xd, user, *state_bits in product((0, 1), repeat=7):
        state = ControlState.long(LA57, 0x1000)
        for word, bit in zip(words, state_bits, strict=True):
            state = with_word(state, word) if bit != (word == "-wp") else state
        for who, kind in product(("user", "sup", "implicit"), Kind):
            if who == "implicit" and kind is Kind.FETCH:
                continue
            actor = replace(state, cpl=3 if who == "user" else 0)
            how = Access(kind, implicit=who == "implicit")
            verdict = access(spaces[rw, xd, user], actor, VirtAddr(0xFF11_0000_0000_1ABC), how)
            bits = [str(bit) for bit in (rw, xd, *state_bits)]
            want = decide(vectors["rights"], who, kind.value, "user" if user else "sup", bits)
            got = verdict.rule.name if isinstance(verdict, Fault) else "ok"

            assert got == want, (who, kind, rw, xd, user, bits)


def test_implicit_means_supervisor_at_any_privilege_level() -> None:
    space = one_page(rw=1, xd=0, user=0)
    state = ControlState.long(LA57, 0x1000, cpl=3)
    va = VirtAddr(0xFF11_0000_0000_1000)

    assert isinstance(access(space, state, va), Fault)
    assert isinstance(access(space, state, va, Access(Kind.READ, implicit=True)), Allowed)


def test_lam(lam_vector: list[str]) -> None:
    mode_name, words, address, want = lam_vector
    mode = MODES[mode_name]
    state = ControlState.long(mode, 0x1000)
    cr3 = sum({"u48": CR3_LAM_U48, "u57": CR3_LAM_U57, "sup": 0}[word] for word in words.split())
    cr4 = int(Cr4.LAM_SUP) if "sup" in words else 0
    state = replace(state, cr3=state.cr3 | cr3, cr4=state.cr4 | cr4)
    space = AddressSpace.from_state(Ram.of_size(0x1000, start=0x1000), state, Cpu(lam=True))
    va = VirtAddr(int(address, 16))
    verdict = access(space, state, va)

    assert isinstance(verdict, Fault)
    got = "GP" if verdict.cause is Cause.NON_CANONICAL else hex64(verdict.va)
    assert got == want
    assert hex64(untagged(va, state, mode)) == want or want == "GP"
    if not mode.is_canonical(va):
        fetch = access(space, state, va, Access(Kind.FETCH))
        assert isinstance(fetch, Fault)
        assert fetch.cause is Cause.NON_CANONICAL  # a fetch has no tag


def test_a_fault_on_one_line_and_its_cr2(tree: Ram) -> None:
    state = ControlState.long(LA57, 0x1000, cpl=3)
    space = AddressSpace.from_state(tree, state, CPU)
    page_fault = access(space, state, VirtAddr(0x1000), Access(Kind.WRITE))
    general = access(space, state, VirtAddr(1 << 63))

    assert isinstance(page_fault, Fault)
    assert isinstance(general, Fault)
    assert str(page_fault) == "#PF(0x7) 0x0000000000001000 at PT: user access to a supervisor page"
    assert str(general) == "#GP(0x0) 0x8000000000000000: the address is not canonical"
    assert (page_fault.cr2, general.cr2) == (0x1000, None)
    assert len(page_fault.steps) == 5
    assert general.steps == ()


def test_accessed_and_dirty(tree: Ram) -> None:
    state = ControlState.long(LA57, 0x1000)
    space = AddressSpace.from_state(tree, state, CPU)
    tree.write(PhysAddr(0x3000), (0x4027).to_bytes(8, "little"))

    def changes(kind: Kind) -> dict[int, int]:
        verdict = access(space, state, VirtAddr(0x602ABC), Access(kind))
        assert isinstance(verdict, Allowed)
        return dict(accessed_and_dirty(verdict, Access(kind)))

    tables = {0x1000: 0x2027, 0x2000: 0x3027, 0x4018: 0x5027}
    assert changes(Kind.READ) == tables | {0x5010: 0xB0A7}
    assert changes(Kind.WRITE) == tables | {0x5010: 0xB0E7}


def test_an_unreadable_table_raises(tree: Ram) -> None:
    state = ControlState.long(LA57, 0x1000)
    with pytest.raises(MemoryReadError, match=r"^tree has no memory at 0x0000000090000000 \(\+8 bytes\)$"):
        access(AddressSpace.from_state(tree, state, CPU), state, VirtAddr(0x0004_0000_0000_0000))


def test_a_state_that_is_not_the_space_is_refused(tree: Ram) -> None:
    state = ControlState.long(LA57, 0x1000)
    space = AddressSpace.from_state(tree, state, CPU)
    with pytest.raises(ValueError, match=r"^the state has 4-level paging, NXE=1; the space differs$"):
        access(space, ControlState.long(LA48, 0x1000), VirtAddr(0x1000))
    with pytest.raises(ValueError, match=r"^the state has 5-level paging, NXE=0; the space differs$"):
        access(space, with_word(state, "-nxe"), VirtAddr(0x1000))


@pytest.mark.parametrize("size", [0, 4097])
def test_a_size_that_no_access_has_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=rf"^an access of {size} bytes; expected 1 to 4096$"):
        Access(Kind.READ, size)
