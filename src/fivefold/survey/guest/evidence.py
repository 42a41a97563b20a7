"""A fact about a guest, and how it is known: nothing is reported without the second half."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Found(Generic[T_co]):
    """*value* and the evidence for it, on one line; where *value* is None, *how* says why it is not known.

    *against* is evidence that contradicts it, where the caller insisted all the same.

    >>> print(Found(5, "CR4.LA57 of CPU 0"))
    5 (CR4.LA57 of CPU 0)
    """

    value: T_co
    how: str
    against: str | None = None

    @property
    def evidence(self) -> str:
        """How it is known, and what speaks against it."""
        return f"{self.how}, but {self.against}" if self.against else self.how

    def __str__(self) -> str:
        """The value with its evidence in brackets."""
        return f"{'not known' if self.value is None else self.value} ({self.evidence})"
