"""What an audit tolerates: severities by rule, and exceptions with reasons.

A policy file is TOML::

    schema = "fivefold.policy/1"
    defaults = true                    # keep the exceptions that every Linux needs
    fail-on = "warning"                # the least severity that fails: error, warning or note

    [rules]
    wx-user = "off"                    # error, warning, note or off
    global-user-page = "error"

    [[except]]
    rule = "memory-type-conflict"
    reason = "frame buffer, mapped by its driver as well"
    phys = "0xfd000000-0xfe000000"     # all of these must hold, the ends are exclusive
    range = "0xff6d7d5040000000+16M"
    area = "vmalloc"
    offset = "0-0x200000"              # from the start of the area

    [[except]]
    rule = "wx-kernel"
    reason = "patched while it runs"
    symbol = "my_stub"                 # its pages; "FIRST-LAST" from one symbol to another, "NAME [MODULE]" a module's

A finding is excepted when an exception covers all of it; it is still told, with the reason.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from fivefold import _arguments
from fivefold.errors import FormatError
from fivefold.opening import open_to_read
from fivefold.survey.audit.rules import BY_NAME, RULE_NAMES, Severity
from fivefold.symbols import NO_SYMBOLS, Symbols
from fivefold.units import MIB, parse_range

SCHEMA: Final = "fivefold.policy/1"
MAX_FILE: Final = MIB
FAIL_ON: Final = (Severity.ERROR, Severity.WARNING, Severity.NOTE)


@dataclass(frozen=True, slots=True)
class Allowance:
    """Findings of *rule* that are meant, and why. What is None does not matter; ends are exclusive.

    *offset* counts from the start of *area*, so that it holds for kernels at random places; so does *symbol*, as
    `Symbols.pages_of` takes it. In a guest whose symbols are not known, an exception with one covers nothing.
    """

    rule: str
    reason: str
    window: range | None = None
    phys: range | None = None
    area: str | None = None
    offset: range | None = None
    symbol: str | None = None

    def covers(
        self,
        rule: str,
        window: range | None,
        phys: range | None,
        area: str | None,
        area_start: int | None = None,
        symbols: Symbols = NO_SYMBOLS,
    ) -> bool:
        """Whether a finding of *rule* at *window*, *phys*, in *area* from *area_start* on, lies in it as a whole."""
        if rule != self.rule or self.area not in (None, area) or not _within(window, self.window):
            return False
        if self.offset is not None and not _within(relative(window, area_start), self.offset):
            return False
        if self.phys is not None and (phys is None or not _within(phys, self.phys)):
            return False
        return self.symbol is None or any(_within(window, pages) for pages in symbols.pages_of(self.symbol))


def _within(part: range | None, whole: range | None) -> bool:
    return whole is None or (part is not None and whole.start <= part.start and part.stop <= whole.stop)


def relative(window: range | None, area_start: int | None) -> range | None:
    """*window* as offsets from the start of its area."""
    if window is None or area_start is None:
        return None
    return range(window.start - area_start, window.stop - area_start)


LINUX_EXCEPTIONS: Final = (
    Allowance(
        "executable-direct-map",
        "the real-mode trampoline starts CPUs below 1 MiB and is read-only (realmode/init.c)",
        phys=range(MIB),
        area="direct_map",
    ),
    Allowance(
        "user-kernel-half",
        "the vsyscall page: fixed, read-only, or a trap (vsyscall_64.c)",
        window=range(0xFFFF_FFFF_FF60_0000, 0xFFFF_FFFF_FF60_1000),
    ),
    Allowance(
        "table-writable-alias",
        "static tables lie in the kernel's data, which the direct map maps as well (head_64.S)",
        area="kernel_image",
    ),
    Allowance(
        "guard-mapped",
        "KASAN with five levels fills the whole top-level slot that its shadow begins in (kasan_init_64.c)",
        window=range(0xFFDF_0000_0000_0000, 0xFFDF_FC00_0000_0000),
        area="hole_below_kasan_shadow",
    ),
)
"""What every Linux has, by design."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Severities that differ from the rules' own, by name, exceptions, and the least severity that fails."""

    severities: Mapping[str, Severity] = field(default_factory=dict)
    exceptions: tuple[Allowance, ...] = LINUX_EXCEPTIONS
    name: str = "the built-in policy"
    fail_on: Severity = Severity.WARNING

    def severity(self, rule: str) -> Severity:
        """How bad a finding of *rule* is."""
        return self.severities.get(rule, BY_NAME[rule].severity)

    @property
    def has_symbols(self) -> bool:
        """Whether an exception names a symbol: only then symbols need to be known."""
        return any(one.symbol is not None for one in self.exceptions)

    def reason_for(
        self,
        rule: str,
        window: range | None,
        phys: range | None,
        area: str | None,
        area_start: int | None = None,
        symbols: Symbols = NO_SYMBOLS,
    ) -> str | None:
        """Why such a finding is tolerated; None where it is not."""
        fitting = (one for one in self.exceptions if one.covers(rule, window, phys, area, area_start, symbols))
        return next((one.reason for one in fitting), None)

    @classmethod
    def parse(cls, text: str, name: str) -> Self:
        """Read a policy file's *text*; `FormatError` that says what is wrong in file *name*."""
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise FormatError(f"{name} is not TOML: {error}") from error
        except RecursionError as error:
            raise FormatError(f"{name} nests values too deeply; expected a policy in TOML") from error
        reader = _Reader(name)
        reader.check_keys(table, {"schema", "defaults", "fail-on", "rules", "except"}, "the policy")
        if table.get("schema") != SCHEMA:
            raise FormatError(f"{name} has schema {table.get('schema')!r}; expected {SCHEMA!r}")
        defaults = table.get("defaults", True)
        if not isinstance(defaults, bool):
            raise FormatError(f"{name}: defaults is {defaults!r}; expected true or false")
        own = tuple(reader.exception(row) for row in reader.rows(table))
        exceptions = own + (LINUX_EXCEPTIONS if defaults else ())
        return cls(reader.severities(table), exceptions, name, reader.fail_on(table))


def load_policy(path: str | os.PathLike[str]) -> Policy:
    """Read a policy file; `FormatError` where it is none, `OSError` where it cannot be read."""
    _arguments.instance("path", path, str, os.PathLike, expected="the name of a file")
    with open_to_read(path) as file:
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise FormatError(f"{path} is larger than {MAX_FILE} bytes; expected a policy in TOML")
    try:
        return Policy.parse(data.decode(), str(path))
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is not UTF-8 text; expected a policy in TOML") from error


class _Reader:
    """Reads the parts of a policy and says where they are wrong."""

    def __init__(self, name: str) -> None:
        self.name = name

    def check_keys(self, table: Mapping[str, Any], known: set[str], where: str) -> None:
        for key in sorted(table.keys() - known):
            raise FormatError(f"{self.name}: {where} has no {key!r}; expected {', '.join(sorted(known))}")

    def severities(self, table: Mapping[str, Any]) -> dict[str, Severity]:
        rules = table.get("rules", {})
        if not isinstance(rules, dict):
            raise FormatError(f"{self.name}: rules is {rules!r}; expected a table of severities")
        return {self.rule(name): self._severity(name, word) for name, word in rules.items()}

    def _severity(self, rule: str, word: object) -> Severity:
        try:
            return Severity(word)  # type: ignore[arg-type]
        except ValueError as error:
            raise FormatError(f"{self.name}: {rule} is {word!r}; expected {', '.join(Severity)}") from error

    def fail_on(self, table: Mapping[str, Any]) -> Severity:
        word = table.get("fail-on", Severity.WARNING)
        if word not in FAIL_ON:
            raise FormatError(f"{self.name}: fail-on is {word!r}; expected {', '.join(FAIL_ON)}")
        return Severity(word)

    def rule(self, name: object) -> str:
        if name not in RULE_NAMES:
            raise FormatError(f"{self.name}: there is no rule {name!r}; expected one of {', '.join(RULE_NAMES)}")
        return str(name)

    def rows(self, table: Mapping[str, Any]) -> list[dict[str, Any]]:
        rows = table.get("except", [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise FormatError(f"{self.name}: except is {rows!r}; expected tables, each headed [[except]]")
        return rows

    def exception(self, row: Mapping[str, Any]) -> Allowance:
        self.check_keys(row, {"rule", "reason", "range", "phys", "area", "offset", "symbol"}, "an exception")
        reason = row.get("reason")
        if not isinstance(reason, str) or not reason.strip():
            raise FormatError(f"{self.name}: an exception of {row.get('rule')!r} has no reason; expected some words")
        area = row.get("area")
        if area is not None and not isinstance(area, str):
            raise FormatError(f"{self.name}: area is {area!r}; expected a name such as 'direct_map'")
        window, phys, offset = (self._range(row[key]) if key in row else None for key in ("range", "phys", "offset"))
        if offset is not None and area is None:
            raise FormatError(f"{self.name}: an exception of {row.get('rule')!r} has an offset; expected an area, too")
        symbol = row.get("symbol")
        if symbol is not None and (not isinstance(symbol, str) or not symbol.strip("- []")):
            raise FormatError(f"{self.name}: symbol is {symbol!r}; expected NAME, FIRST-LAST or NAME [MODULE]")
        return Allowance(self.rule(row.get("rule")), reason.strip(), window, phys, area, offset, symbol)

    def _range(self, text: object) -> range:
        expected = "expected START-END or START+SIZE, the end exclusive"
        if not isinstance(text, str):
            raise FormatError(f"{self.name}: {text!r} is not a range; {expected}")
        try:
            return parse_range(text)
        except ValueError as error:
            raise FormatError(f"{self.name}: {error}") from error
