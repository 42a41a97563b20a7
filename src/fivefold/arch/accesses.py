"""What is done to an address: the kinds of access, and who is said to make them.

Sources: Intel SDM, "Determination of Access Rights", "Shadow Stacks" and "Page-Fault Exceptions".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from fivefold.arch.state import ControlState
from fivefold.units import VirtAddr


class Kind(Enum):
    """What an access does. A read-modify-write is a write."""

    READ = "read"
    WRITE = "write"
    FETCH = "fetch"


@dataclass(frozen=True, slots=True)
class Access:
    """What is done to an address; who does it follows from the privilege level.

    *size* in bytes, 1 to 4096. *implicit*: the CPU's own access to a descriptor table or TSS,
    which is a supervisor's at any privilege level. *stack*: through SS, or a push, pop, call or return.
    *shadow*: a shadow-stack access, as of CALL, RET, INCSSP, RSTORSSP, SAVEPREVSSP and WRSS. *as_user*:
    a supervisor's access that counts as a user's, which only WRUSS makes. *va*: the first byte, for callers who keep
    the address with the access; `access` takes it beside.
    """

    kind: Kind
    size: int = 1
    implicit: bool = False
    stack: bool = False
    shadow: bool = False
    as_user: bool = False
    va: VirtAddr | int | None = None

    def __post_init__(self) -> None:
        """Refuse a kind or size that no access has, and a shadow-stack access that fetches."""
        if not isinstance(self.kind, Kind):
            raise TypeError(f"kind is {self.kind!r}; expected Kind.READ, Kind.WRITE or Kind.FETCH")
        if not 1 <= self.size <= 4096:
            raise ValueError(f"an access of {self.size} bytes; expected 1 to 4096")
        if self.kind is Kind.FETCH and (self.shadow or self.as_user or self.implicit):
            raise ValueError("a fetch is neither a shadow-stack access nor the CPU's own")


READ: Final = Access(Kind.READ)
WRITE: Final = Access(Kind.WRITE)
FETCH: Final = Access(Kind.FETCH)
WRSS: Final = Access(Kind.WRITE, 8, shadow=True)
WRUSS: Final = Access(Kind.WRITE, 8, shadow=True, as_user=True)
RSTORSSP: Final = Access(Kind.WRITE, 8, shadow=True)
"""Reads the token and writes it back, locked: a read-modify-write, which is a write."""
SHADOW_POP: Final = Access(Kind.READ, 8, shadow=True)
SHADOW_PUSH: Final = Access(Kind.WRITE, 8, shadow=True)


def is_user(state: ControlState, how: Access) -> bool:
    """Whether it is a user-mode access: made at privilege level 3 and not by the CPU itself, or by WRUSS."""
    return how.as_user or (state.cpl == 3 and not how.implicit)
