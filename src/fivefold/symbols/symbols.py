"""Symbols of a kernel and its modules, and what they make of an address: ``name+0x1a``.

Only what is asked for is named: a table gives the name of a number, and decodes it then.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Self

from fivefold.units import MIB, PAGE

TEXT_KINDS: Final = frozenset("tTwW")

LONGEST_FUNCTION: Final = MIB
"""Text so far behind a symbol is not its: tables without data symbols end somewhere, and what follows has no name."""

MOST_ALIASES: Final = 64
"""Symbols at one address that are looked at for the best name."""


_MARK: Final = re.compile(r"_+[a-z_]*text(_start|_end|_begin)?|_(sdata|edata|end|brk_end)")
"""Names that a linker script gives to where sections begin and end, such as ``_stext`` and ``__noinstr_text_end``."""


class KernelSymbol(NamedTuple):
    """One symbol; *kind* is nm's letter, upper case where it is global. *module* is None for the kernel itself."""

    address: int
    kind: str
    name: str
    module: str | None = None

    def __str__(self) -> str:
        """The name, and the module in brackets, as the kernel prints them."""
        return self.name if self.module is None else f"{self.name} [{self.module}]"


@dataclass(frozen=True)
class SymbolSpan:
    """Symbols that lie together: *addresses* ascending, *name_of* gives kind and name of a number in that order.

    *end*, exclusive, is where the last one ends at the latest. *all_names*, where given, is `name_of` of all, faster,
    and *numbers_of* gives the numbers of a name.
    """

    addresses: Sequence[int]
    name_of: Callable[[int], tuple[str, str]]
    end: int
    module: str | None = None
    all_names: Callable[[], Iterable[tuple[str, str]]] | None = None
    numbers_of: Callable[[str], list[int]] | None = None
    _known: dict[int, KernelSymbol] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, symbols: Iterable[tuple[int, str, str]], end: int | None = None, module: str | None = None) -> Self:
        """From (address, kind, name) in any order; without *end* the last one has no size."""
        found = sorted(symbols)
        if not found:
            raise ValueError("no symbols; expected one or more")
        names = [(kind, name) for _, kind, name in found]
        addresses = [address for address, _, _ in found]
        return cls(addresses, names.__getitem__, found[-1][0] + 1 if end is None else end, module)

    @property
    def start(self) -> int:
        """The first symbol's address."""
        return self.addresses[0]

    def at(self, va: int) -> KernelSymbol | None:
        """The symbol that *va* belongs to: of several at one address no section's mark, a global one, by name."""
        number = bisect_right(self.addresses, va) - 1
        if number < 0 or va >= self.end:
            return None
        if number not in self._known:
            self._known[number] = self._best(number)
        found = self._known[number]
        if found.kind in TEXT_KINDS and va - found.address >= LONGEST_FUNCTION:
            return None
        return found

    def _best(self, number: int) -> KernelSymbol:
        address = self.addresses[number]
        first = max(bisect_left(self.addresses, address), number - MOST_ALIASES)
        aliases = (KernelSymbol(address, *self.name_of(one), self.module) for one in range(first, number + 1))
        return min(aliases, key=lambda one: (_MARK.fullmatch(one.name) is not None, not one.kind.isupper(), one.name))

    def address(self, name: str) -> int | None:
        """Where *name* lies, the lowest of several; None where there is none."""
        if self.numbers_of is not None:
            return min((self.addresses[number] for number in self.numbers_of(name)), default=None)
        return next((symbol.address for symbol in self if symbol.name == name), None)

    def extents(self, name: str) -> Iterator[tuple[int, int]]:
        """Where each symbol *name* begins, and where the next one does."""
        for start in {symbol.address for symbol in self if symbol.name == name}:
            after = bisect_right(self.addresses, start)
            yield start, self.addresses[after] if after < len(self.addresses) else self.end

    def __iter__(self) -> Iterator[KernelSymbol]:
        """All of them, ascending."""
        names = map(self.name_of, range(len(self.addresses))) if self.all_names is None else self.all_names()
        for address, (kind, name) in zip(self.addresses, names, strict=True):
            yield KernelSymbol(address, kind, name, self.module)


class Symbols:
    """All symbols that are known of a guest; *how* says from what, also where there are none.

    *is_running*: their addresses are those of a running kernel; of a file from the kernel's build they are those it
    was linked at, and where it runs they are moved by the slide of KASLR.
    """

    def __init__(self, spans: Iterable[SymbolSpan], how: str, *, is_running: bool = False) -> None:
        """*spans* in any order; where two overlap the one that begins later wins."""
        self.spans = sorted(spans, key=lambda span: span.start)
        self.how = how
        self.is_running = is_running
        self._starts = [span.start for span in self.spans]

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.spans)

    @property
    def known_from(self) -> str | None:
        """`how`, None without symbols."""
        return self.how if self.spans else None

    def symbol_at(self, va: int) -> KernelSymbol | None:
        """The symbol that *va* belongs to."""
        number = bisect_right(self._starts, va) - 1
        while number >= 0:
            if va < self.spans[number].end:
                return self.spans[number].at(va)
            number -= 1
        return None

    def at(self, va: int) -> str | None:
        """What *va* is called: ``name``, ``name+0x1a``, ``name+0x1a [module]``; None where no symbol reaches."""
        found = self.symbol_at(va)
        if found is None:
            return None
        offset = f"+{va - found.address:#x}" if va != found.address else ""
        return f"{found.name}{offset}" + (f" [{found.module}]" if found.module else "")

    def address(self, name: str) -> int | None:
        """Where the kernel's own symbol *name* lies, the lowest of several; None where there is none."""
        own = (span.address(name) for span in self.spans if span.module is None)
        return min((at for at in own if at is not None), default=None)

    def pages_of(self, names: str) -> list[range]:
        """The pages that the symbols *names* touch, one range for each place: ``NAME`` up to the next symbol.

        ``FIRST-LAST`` goes from one symbol up to the other; ``NAME [MODULE]`` is a module's. Empty where there is none.
        """
        first, dash, last = names.partition("-")
        if dash:
            start, end = self.address(first), self.address(last)
            return [] if start is None or end is None or start >= end else [_pages(start, end)]
        name, bracket, module = names.partition(" [")
        wanted = module.rstrip("]") if bracket else None
        found = (span.extents(name) for span in self.spans if span.module == wanted)
        return [_pages(start, end) for rows in found for start, end in rows]

    def only_address(self, name: str) -> int | None:
        """Where *name* begins, None if there is none, or more than one: static functions may share a name."""
        found = {symbol.address for span in self.spans for symbol in span if symbol.name == name}
        return found.pop() if len(found) == 1 else None


def _pages(start: int, end: int) -> range:
    return range(start & ~(PAGE - 1), end + PAGE - 1 & ~(PAGE - 1))


NO_SYMBOLS: Final = Symbols((), "no symbols were looked for")
