"""Refusals of wrong arguments: a `TypeError` or `ValueError` that names the argument and what was expected."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable
from typing import Protocol

from fivefold.units import MASK64


class Closable(Protocol):
    """What can be closed, and says so."""

    @property
    def closed(self) -> bool:
        """Whether it was."""
        ...


def integer(name: str, value: object) -> int:
    """Return *value* as an ``int``; `TypeError` for text, a float or a bool."""
    if not isinstance(value, bool):
        try:
            return operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            pass
    raise TypeError(f"{name} is {value!r}; expected an integer")


def word(name: str, value: object) -> int:
    """Return *value* as a 64-bit number; `ValueError` where it does not fit."""
    number = integer(name, value)
    if not 0 <= number <= MASK64:
        raise ValueError(f"{name} is {number:#x}; expected a number from 0 to 2**64-1")
    return number


def opened(name: str, value: Closable, *types: type) -> None:
    """Raise `TypeError` unless *value* is one of *types*, `ValueError` where it was closed, as Python's files do."""
    instance(name, value, *types)
    if value.closed:
        raise ValueError(f"{name} is closed: {getattr(value, 'name', value)}; expected it open")


def instance(name: str, value: object, *types: type, expected: str = "") -> None:
    """Raise `TypeError` unless *value* is one of *types*."""
    if not isinstance(value, types):
        wanted = expected or " or ".join("None" if one is type(None) else one.__name__ for one in types)
        raise TypeError(f"{name} is {value!r}; expected {wanted}")


def fields(of: object, **types: tuple[type, ...]) -> None:
    """Check the attributes of *of* by name: an ``int`` takes no bool, and a ``float`` takes an ``int``."""
    for name, wanted in types.items():
        value = getattr(of, name)
        if value is None and type(None) in wanted:
            continue
        if int in wanted and float not in wanted:
            integer(name, value)
        else:
            instance(name, value, *wanted)


def keywords(function: str, given: Iterable[str], known: Collection[str]) -> None:
    """Raise `TypeError` for the first of *given* that *function* does not take."""
    for name in given:
        if name not in known:
            raise unknown_keyword(function, name, known)


def unknown_keyword(function: str, name: str, known: Iterable[str]) -> TypeError:
    """What to raise for a keyword that *function* does not take, with the nearest that it takes."""
    from difflib import get_close_matches

    names = sorted(known)
    near = get_close_matches(name, names, 1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; expected one of {', '.join(names)}"
    return TypeError(f"{function}() got an unexpected keyword argument {name!r}{hint}")
