"""The rules of an audit: what each looks for, why it matters, how severe it is unless a policy says otherwise.

Facts about Linux are from its documentation "Page Table Isolation (PTI)" and "Self-Protection", and from
the sources that the rows name.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple


class Severity(StrEnum):
    """How bad it is, the worst first. ``off``: not looked for."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"
    OFF = "off"

    def is_as_bad_as(self, other: Severity) -> bool:
        """Whether it is *other*, or worse."""
        worst_first = list(Severity)
        return worst_first.index(self) <= worst_first.index(other)


class AuditRule(NamedTuple):
    """A rule: *name* for policies and reports, *title* on one line, *why* in a sentence or two."""

    name: str
    severity: Severity
    title: str
    why: str


_ERROR, _WARNING = Severity.ERROR, Severity.WARNING

RULES: Final = (
    AuditRule(
        "wx-kernel",
        _ERROR,
        "writable and executable in the kernel half, or for the supervisor alone",
        "Code that can write there runs code in the kernel. Effective rights count, those of all entries on the path.",
    ),
    AuditRule(
        "wx-user",
        _WARNING,
        "writable and executable by user mode in the user half",
        "A process that can write its own code; usual for some just-in-time compilers.",
    ),
    AuditRule(
        "user-kernel-half",
        _ERROR,
        "kernel half that user mode can reach",
        "User mode reads, or writes, what lies there without asking the kernel.",
    ),
    AuditRule(
        "writable-code-alias",
        _ERROR,
        "code of the kernel that is writable at another address",
        "A writable alias undoes W^X: the code is changed through it.",
    ),
    AuditRule(
        "user-writable-code-alias",
        _WARNING,
        "code of a process that it can write at another address",
        "A double mapping of generated code; W^X holds for each address, not for the memory.",
    ),
    AuditRule(
        "table-user",
        _ERROR,
        "page table that user mode can reach",
        "User mode that reads tables learns physical addresses; if it writes them it owns the machine.",
    ),
    AuditRule(
        "table-writable-alias",
        _WARNING,
        "page table that is writable at more than one address",
        "Besides the direct map nothing needs to write a table; stray writes find it twice as easily.",
    ),
    AuditRule(
        "executable-direct-map",
        _ERROR,
        "executable direct map",
        "Whatever gets into memory can be run at its address in the direct map, user data too.",
    ),
    AuditRule(
        "null-page",
        _ERROR,
        "the page at address 0 is mapped",
        "A null pointer that is followed in the kernel reads or runs what a process put there.",
    ),
    AuditRule(
        "memory-type-conflict",
        _WARNING,
        "one frame mapped with two memory types",
        'Intel SDM, "Programming the PAT": aliases of different types lead to undefined operations.',
    ),
    AuditRule(
        "malformed-entry",
        _ERROR,
        "entry with reserved bits set",
        "Every access through it faults with RSVD=1: memory was overwritten, or the writer assumed another CPU.",
    ),
    AuditRule(
        "table-not-in-memory",
        _ERROR,
        "entry that points to a table outside memory",
        "The CPU would read whatever answers at that address. In a sparse dump the table may just be left out.",
    ),
    AuditRule(
        "table-at-two-levels",
        _ERROR,
        "table that serves at two levels",
        "Its entries mean two things at once: leaves of one reading are tables of the other.",
    ),
    AuditRule(
        "table-cycle",
        _WARNING,
        "table that leads back to one above it",
        "A self-map: some systems use one, Linux does not; it maps tables as data.",
    ),
    AuditRule(
        "guard-mapped",
        _ERROR,
        "something mapped where the layout keeps nothing",
        "Guards catch stray pointers only as long as they are empty. Needs areas that were detected.",
    ),
    AuditRule(
        "global-user-page",
        _WARNING,
        "global page of the user half",
        "Its translation outlives a switch to another process.",
    ),
    AuditRule(
        "wp-off",
        _WARNING,
        "write protection off in the supervisor (CR0.WP=0)",
        "The supervisor writes to read-only pages, code included; no W^X of its pages holds.",
    ),
    AuditRule(
        "smep-off",
        _WARNING,
        "supervisor may execute user pages (CR4.SMEP=0)",
        "A kernel that jumps through a bad pointer runs what a process put there.",
    ),
    AuditRule(
        "smap-off",
        _WARNING,
        "supervisor may access user data at any time (CR4.SMAP=0)",
        "A kernel that follows a bad pointer takes what a process put there for its own.",
    ),
    AuditRule(
        "nx-off",
        _WARNING,
        "no page can be protected from execution (EFER.NXE=0)",
        "All that is mapped can be executed, data and stacks included.",
    ),
)

RULE_NAMES: Final = tuple(rule.name for rule in RULES)
BY_NAME: Final = {rule.name: rule for rule in RULES}
