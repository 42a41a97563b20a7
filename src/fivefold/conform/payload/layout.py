"""The table of cases in memory, in words of 8 bytes: what the host writes and what the payload writes back.

::

    0 magic, 1 batches, 2 cases done, 3 state, 4 what to print, 5 words of the table, 6 the hash of its cases as given
    16  CPUID, four words a leaf (`LEAVES`)
    96  batches, `BATCH` words each: levels, number of cases, address of the first
    112 the instructions, `CODE_WORDS` words, for both code pages
    576 cases

A case is `HEAD` words, then `STORE` words for each word of memory that it sets: entries and data.
"""

from __future__ import annotations

from typing import Final

MAGIC: Final = int.from_bytes(b"5FCONFM1", "little")
W_MAGIC: Final = 0
W_BATCHES: Final = 1
W_DONE: Final = 2
W_STATE: Final = 3
W_PRINT: Final = 4
W_SIZE: Final = 5
W_HASH: Final = 6
P_DIFFERING: Final = 1
"""Print what differs, and the hash of every block."""
P_NUMBERS: Final = 2
"""Print the number of each case before it is run, too: for machines that may end at one."""
P_BLOCK_SHIFT: Final = 8
"""From this bit on: the number of a block that is printed in full, plus 1."""
BLOCK: Final = 1000
HASH_START: Final = 0xCBF2_9CE4_8422_2325
HASH_FACTOR: Final = 0x100_0000_01B3
RUNNING: Final = 1
FINISHED: Final = 2
W_CPUID: Final = 16
LEAVES: Final = (0, 1, 7, 7, 0x8000_0000, 0x8000_0001, 0x8000_0008, 0x8000_001F, 0x8000_0021)
SUBLEAVES: Final = (0, 0, 0, 1, 0, 0, 0, 0, 0)
W_BATCH: Final = 96
BATCH: Final = 4
W_CODE: Final = 112
CODE_WORDS: Final = 448
W_CASES: Final = 576

# The words of a case. From C_VECTOR to C_RIP the payload writes.
C_SIZE: Final = 0
C_STORES: Final = 1
C_FLAGS: Final = 2
C_RIP_IN: Final = 3
C_CS: Final = 4
C_RSP: Final = 5
C_RFLAGS: Final = 6
C_RAX: Final = 7
C_RBX: Final = 8
C_RCX: Final = 9
C_RDX: Final = 10
C_RDI: Final = 11
C_CR0: Final = 12
C_CR3: Final = 13
C_CR4: Final = 14
C_EFER: Final = 15
C_PKRU: Final = 16
C_PKRS: Final = 17
C_LDT: Final = 18
C_VECTOR: Final = 19
"""The vector, and from bit 32 the error code."""
C_CR2: Final = 20
C_VALUE: Final = 21
"""RAX afterwards."""
C_RIP: Final = 22
C_WANT_VECTOR: Final = 23
C_WANT_CR2: Final = 24
C_WANT_VALUE: Final = 25
C_COMPARE: Final = 26
"""What is compared beside the vector: bit 0 CR2, bit 1 RAX."""
HEAD: Final = 27

F_PKE: Final = 1
F_PKS: Final = 2
F_EFER: Final = 4
F_RISKY: Final = 16
"""An engine that errs may end here: its number is printed before it is run."""
F_TSS: Final = 32
"""C_LDT is the base of a TSS, from which the gate of vector 32 has its stack; no other gate does then."""
F_WRITES: Final = 8
"""Memory is written: where the outcome differs, data may be anything, and is made anew."""

# What S_MAY has set is not compared.
S_AT: Final = 0
S_VALUE: Final = 1
S_WANT: Final = 2
S_MAY: Final = 3
S_AFTER: Final = 4
STORE: Final = 5
