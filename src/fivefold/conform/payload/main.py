"""The payload's loop: build the driver's tables, run every case of the mode, note what happened, compare.

The words of the table of cases are in `layout.py`, the places in `conform/places.py`.
"""

from __future__ import annotations

from typing import Final

from fivefold.conform import places
from fivefold.conform.payload import layout, text
from fivefold.metal.lang import copy64, cpuid, export, extern, fill64, load64, store64, u64

BASE: Final = places.CASES

outcomes: u64 = layout.HASH_START
"""The hash over the outcomes of this block."""
supported: u64 = 0
"""The bits of CR4 that cases may set on this CPU."""


@extern
def run_case(record: u64) -> None:
    """Make the access of the case at *record*; returns after the exception that ends it."""


@extern
def switch_to_five() -> None:
    """Go on with five levels of page tables, on the payload's own."""


@extern
def load_cr3(root: u64) -> None:
    """Load CR3."""


@export
def payload_main() -> None:
    """Run the batches of four levels, then those of five where the CPU has them."""
    store64(BASE + 8 * layout.W_STATE, layout.RUNNING)
    note_cpuid()
    note_supported()
    fill_data()
    if load64(BASE + 8 * layout.W_PRINT) != 0:
        text.begin_text()
    run_batches(4)
    if cpuid(7, 0, 2) >> 16 & 1 != 0:
        switch_to_five()
        run_batches(5)
    store64(BASE + 8 * layout.W_STATE, layout.FINISHED)
    if load64(BASE + 8 * layout.W_PRINT) != 0:
        end_text()


def note_cpuid() -> None:
    """Leave what CPUID says, for the judge; leaves that the CPU does not have are zero."""
    for i in range(len(layout.LEAVES)):
        leaf = layout.LEAVES[i]
        if leaf <= cpuid(leaf & 0x8000_0000, 0, 0):
            for register in range(4):
                value = 0
                if register == 0:
                    value = cpuid(leaf, layout.SUBLEAVES[i], 0)
                elif register == 1:
                    value = cpuid(leaf, layout.SUBLEAVES[i], 1)
                elif register == 2:
                    value = cpuid(leaf, layout.SUBLEAVES[i], 2)
                else:
                    value = cpuid(leaf, layout.SUBLEAVES[i], 3)
                store64(BASE + 8 * (layout.W_CPUID + 4 * i + register), value)


def note_supported() -> None:
    """Find out by CPUID which bits of CR4 cases may set: a write of another one would end the machine, or hang."""
    global supported
    b = cpuid(7, 0, 1)
    c = cpuid(7, 0, 2)
    bits = 1 << 5 | 1 << 7 | 1 << 12 | (b & 1) << 16 | (cpuid(1, 0, 2) >> 17 & 1) << 17
    bits |= (b >> 7 & 1) << 20 | (b >> 20 & 1) << 21 | (c >> 3 & 1) << 22 | (c >> 31 & 1) << 24
    bits |= (c >> 7 & 1 | cpuid(7, 0, 3) >> 20 & 1) << 23 | (cpuid(7, 1, 0) >> 6 & 1) << 27
    supported = bits


def fill_data() -> None:
    """Write the pattern over all data, as `places.pattern` has it, and the instructions into the code pages."""
    for page in range(places.DATA_SIZE >> 12):
        fill64(places.DATA + (page << 12), places.PATTERN | page << 16, 512)
    fill64(places.CODE, 0xCCCC_CCCC_CCCC_CCCC, 2 * 512)
    copy64(places.CODE, BASE + 8 * layout.W_CODE, layout.CODE_WORDS)
    copy64(places.USER_CODE, BASE + 8 * layout.W_CODE, layout.CODE_WORDS)


def run_batches(levels: u64) -> None:
    """Run the batches of *levels*; the paging on is the payload's own."""
    build_driver(levels)
    load_cr3(places.ROOT)
    for i in range(load64(BASE + 8 * layout.W_BATCHES)):
        batch = BASE + 8 * (layout.W_BATCH + layout.BATCH * i)
        if load64(batch) == levels:
            run_cases(load64(batch + 16), load64(batch + 8))


def build_driver(levels: u64) -> None:
    """Build the driver's tables, as `places.driver_entry` has them."""
    fill64(places.TABLES, 0, 512 * 16)
    fill64(places.LOW_PML4, 0, 512 * 2)
    for i in range(4 * 512):
        store64(places.LOW_PD + 8 * i, i << 21 | places.KERNEL_PAGE | places.LARGE)
    for i in range(512):
        store64(places.LOW_PT0 + 8 * i, i << 12 | places.KERNEL_PAGE)
        store64(places.ARENA_PT + 8 * i, places.ARENA + (i << 12) | places.KERNEL_PAGE)
    for i in range(4):
        store64(places.LOW_PDPT + 8 * i, places.LOW_PD + 0x1000 * i | places.LINK)
    store64(places.LOW_PD, places.LOW_PT0 | places.LINK)
    store64(places.LOW_PD + 8 * (places.ARENA >> 21), places.ARENA_PT | places.LINK)
    store64(places.LOW_PT0, places.WRAP_PAGE | places.LINK)
    store64(places.ARENA_PT + 8 * (places.USER_CODE >> 12 & 511), places.USER_CODE | places.LINK)
    store64(places.LOW_PML4, places.LOW_PDPT | places.LINK)
    store64(places.ROOT, (places.LOW_PML4 if levels == 5 else places.LOW_PDPT) | places.LINK)


def run_cases(first: u64, count: u64) -> None:
    """Run *count* cases from the record at *first* on."""
    record = first
    for _i in range(count):
        if announces(record):
            text.begin_line("run")
            text.put_hex(load64(BASE + 8 * layout.W_DONE))
            text.end_line()
        run_one(record)
        if load64(record + 8 * layout.C_FLAGS) & layout.F_WRITES != 0 and differs(record):
            fill_data()
        done = load64(BASE + 8 * layout.W_DONE) + 1
        store64(BASE + 8 * layout.W_DONE, done)
        if load64(BASE + 8 * layout.W_PRINT) != 0:
            tell(record, done - 1)
        record += load64(record + 8 * layout.C_SIZE) * 8


def announces(record: u64) -> bool:
    """Whether the number of the case at *record* is printed before it is run."""
    wanted = load64(BASE + 8 * layout.W_PRINT)
    risky = load64(record + 8 * layout.C_FLAGS) & layout.F_RISKY != 0
    return wanted & layout.P_NUMBERS != 0 or (wanted != 0 and risky)


def run_one(record: u64) -> None:
    """Write the entries of a case, make its access, note them afterwards, and take them away again."""
    stores = load64(record + 8 * layout.C_STORES)
    if load64(record + 8 * layout.C_CR4) & ~supported != 0:
        pass_over(record, stores)
        return
    at = record + 8 * layout.HEAD
    for _i in range(stores):
        store64(load64(at + 8 * layout.S_AT), load64(at + 8 * layout.S_VALUE))
        at += 8 * layout.STORE
    run_case(record)
    at = record + 8 * layout.HEAD
    for _i in range(stores):
        store64(at + 8 * layout.S_AFTER, load64(load64(at + 8 * layout.S_AT)))
        at += 8 * layout.STORE
    at = record + 8 * layout.HEAD
    for _i in range(stores):
        clean(load64(at + 8 * layout.S_AT))
        at += 8 * layout.STORE


def pass_over(record: u64, stores: u64) -> None:
    """Note what is expected of a case that this CPU cannot run; the judge knows by CPUID that it was not."""
    for word in range(3):
        store64(record + 8 * (layout.C_VECTOR + word), load64(record + 8 * (layout.C_WANT_VECTOR + word)))
    at = record + 8 * layout.HEAD
    for _i in range(stores):
        store64(at + 8 * layout.S_AFTER, load64(at + 8 * layout.S_WANT))
        at += 8 * layout.STORE


def clean(at: u64) -> None:
    """Put back what stands at physical *at* between cases.

    Data twice: bochscpu forgets an instruction that it has decoded when its bytes are stored to, but not at the first
    store to a page after a load of CR3. The next case that jumps there must not run what is left of this one.
    """
    store64(at, clean_word(at))
    if at >= places.DATA:
        store64(at, clean_word(at))


def clean_word(at: u64) -> u64:
    """What stands at physical *at* between cases: the pattern in data, zero in the tables."""
    if at >= places.DATA:
        return places.PATTERN | (at - places.DATA >> 12) << 16
    return 0


def differs(record: u64) -> bool:
    """Whether the outcome is another than the one that the case carries."""
    if load64(record + 8 * layout.C_VECTOR) != load64(record + 8 * layout.C_WANT_VECTOR):
        return True
    compare = load64(record + 8 * layout.C_COMPARE)
    for i in range(2):
        if compare >> i & 1 != 0:
            got = word_compared(record, i)
            if got != load64(record + 8 * (layout.C_WANT_CR2 + i)):
                return True
    at = record + 8 * layout.HEAD
    for _i in range(load64(record + 8 * layout.C_STORES)):
        changed = load64(at + 8 * layout.S_AFTER) ^ load64(at + 8 * layout.S_WANT)
        if changed & ~load64(at + 8 * layout.S_MAY) != 0:
            return True
        at += 8 * layout.STORE
    return False


def word_compared(record: u64, i: u64) -> u64:
    """CR2 or RAX as they were seen: the *i*-th word that is compared."""
    return load64(record + 8 * (layout.C_CR2 + i))


def take(word: u64) -> None:
    """Take *word* into the block's hash."""
    global outcomes
    outcomes = (outcomes ^ word) * layout.HASH_FACTOR


def tell(record: u64, number: u64) -> None:
    """Print the case if it differs or its block was asked for, and the hash at the end of a block."""
    global outcomes
    take(load64(record + 8 * layout.C_VECTOR))
    for i in range(2):
        if load64(record + 8 * layout.C_COMPARE) >> i & 1 != 0:
            take(word_compared(record, i))
    at = record + 8 * layout.HEAD
    for _i in range(load64(record + 8 * layout.C_STORES)):
        take(load64(at + 8 * layout.S_AFTER))
        at += 8 * layout.STORE
    wanted = load64(BASE + 8 * layout.W_PRINT) >> layout.P_BLOCK_SHIFT
    if differs(record) or wanted == number // layout.BLOCK + 1:
        tell_case(record, number)
    if number % layout.BLOCK == layout.BLOCK - 1:
        tell_block(number // layout.BLOCK)


def tell_case(record: u64, number: u64) -> None:
    """Print a case's number and all that was seen of it."""
    text.begin_line("case")
    text.put_hex(number)
    for word in range(layout.C_VECTOR, layout.C_RIP + 1):
        text.put_hex(load64(record + 8 * word))
    at = record + 8 * layout.HEAD
    for _i in range(load64(record + 8 * layout.C_STORES)):
        text.put_hex(load64(at + 8 * layout.S_AFTER))
        at += 8 * layout.STORE
    text.end_line()


def tell_block(number: u64) -> None:
    """Print the hash over a block's outcomes, and start the next one."""
    global outcomes
    text.begin_line("block")
    text.put_hex(number)
    text.put_hex(outcomes)
    text.end_line()
    outcomes = layout.HASH_START


def end_text() -> None:
    """Print the last block's hash, and that all was run."""
    done = load64(BASE + 8 * layout.W_DONE)
    if done % layout.BLOCK != 0:
        tell_block(done // layout.BLOCK)
    text.begin_line("end")
    text.put_hex(done)
    text.end_line()
