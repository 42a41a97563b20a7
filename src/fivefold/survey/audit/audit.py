"""The audit of an address space: rules, each with its findings and their evidence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from fivefold.notebook import SHOWN, html_table
from fivefold.survey.audit import alias_checks, audit_checks
from fivefold.survey.audit.audit_checks import MAX_HITS, Hit, RuleCheck
from fivefold.survey.audit.audit_views import Views
from fivefold.survey.audit.policy import Policy
from fivefold.survey.audit.rules import RULES, AuditRule, Severity
from fivefold.survey.guest.evidence import Found
from fivefold.survey.guest.root_labels import is_trampoline
from fivefold.survey.paths import Path
from fivefold.survey.scan.select import USER_HALF
from fivefold.survey.space import Space
from fivefold.symbols import NO_SYMBOLS
from fivefold.units import PhysAddr, hex64

MAX_EVIDENCE: Final = 64
"""Findings of one rule that come with the entries on their paths."""

_CHECKS: Final[dict[str, RuleCheck]] = {
    "wx-kernel": audit_checks.wx_kernel,
    "wx-user": audit_checks.wx_user,
    "user-kernel-half": audit_checks.user_kernel_half,
    "writable-code-alias": alias_checks.writable_code_alias,
    "user-writable-code-alias": alias_checks.user_writable_code_alias,
    "table-user": alias_checks.table_user,
    "table-writable-alias": alias_checks.table_writable_alias,
    "executable-direct-map": audit_checks.executable_direct_map,
    "null-page": audit_checks.null_page,
    "malformed-entry": audit_checks.malformed_entry,
    "table-not-in-memory": audit_checks.table_not_in_memory,
    "table-at-two-levels": audit_checks.table_at_two_levels,
    "table-cycle": audit_checks.table_cycle,
    "guard-mapped": audit_checks.guard_mapped,
    "global-user-page": audit_checks.global_user_page,
    "wp-off": audit_checks.register_clear("CR0.WP", "the supervisor writes to its pages whatever their entries say"),
    "smep-off": audit_checks.register_clear("CR4.SMEP", "the supervisor executes what user mode can"),
    "smap-off": audit_checks.register_clear("CR4.SMAP", "the supervisor reads and writes what user mode can"),
    "nx-off": audit_checks.register_clear("EFER.NXE", "all that is mapped can be executed"),
}


KERNEL_RULES: Final = frozenset(
    {"user-kernel-half", "writable-code-alias", "executable-direct-map", "guard-mapped", "wp-off", "smep-off"}
) | {"smap-off", "nx-off"}
"""Rules whose answer is the same under all roots of one kernel."""

TRAMPOLINE_REASON: Final = "the real-mode trampoline's root maps low memory where it lies; no process runs on it"

_REGISTER_RULES: Final = {"wp-off": "CR0.WP", "smep-off": "CR4.SMEP", "smap-off": "CR4.SMAP", "nx-off": "EFER.NXE"}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a rule found at *window* (end exclusive), with the paths that show it.

    *window* is None for what is about a register. *phys* is the memory it is about, where that is one run.
    *aliases* are other addresses of that memory. *excepted* is the reason why the policy tolerates it; None where it
    does not. *root* is the one under which it was found; *area_start* where its area begins, of the kernel
    image and of modules where they do. *fail_on* is the least severity that fails the audit.
    """

    rule: AuditRule
    severity: Severity
    window: range | None
    phys: range | None
    area: str | None
    message: str
    aliases: tuple[int, ...]
    evidence: tuple[Path, ...]
    excepted: str | None
    root: PhysAddr | None = None
    area_start: int | None = None
    fail_on: Severity = Severity.WARNING

    @property
    def place(self) -> str:
        """The addresses, the end exclusive; of what is about a register, that."""
        return "registers" if self.window is None else f"{hex64(self.window.start)}-{hex64(self.window.stop)}"

    @property
    def size(self) -> int | None:
        """Bytes of virtual space."""
        return None if self.window is None else self.window.stop - self.window.start

    @property
    def fails(self) -> bool:
        """Whether it fails the audit."""
        return self.excepted is None and self.severity.is_as_bad_as(self.fail_on)


@dataclass(frozen=True, slots=True)
class RuleResult:
    """What came of one rule; *cut* says that there are more findings than are told. *skipped*: why it was not asked."""

    rule: AuditRule
    severity: Severity
    findings: tuple[Finding, ...] = ()
    cut: bool = False
    skipped: str | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing in it fails the audit."""
        return not any(finding.fails for finding in self.findings)


@dataclass(frozen=True, slots=True)
class Audit:
    """The audit of *space*: a result for every rule, and in *limits* what was not looked at, in words.

    *looked_at* roots were looked at, *of* so many that memory holds; an isolated pair is one. Of other roots than
    that of *space* findings say it.
    """

    space: Space
    policy: Policy
    results: tuple[RuleResult, ...]
    limits: tuple[str, ...]
    looked_at: int = 1
    of: Found[int | None] = field(default_factory=lambda: Found(None, "memory was not searched for roots"))

    def _repr_html_(self) -> str:
        found = [finding for result in self.results for finding in result.findings]
        rows = [(one.rule.name, one.severity.value, one.place, one.area, one.message, one.excepted) for one in found]
        caption = f"audit of {self.space.source.name}, root {hex64(self.space.root.value)}: {len(found)} findings"
        more = f"{len(rows) - SHOWN} more are not shown" if len(rows) > SHOWN else ""
        columns = ("rule", "severity", "place", "area", "message", "excepted")
        return html_table(caption, columns, rows[:SHOWN], left_out=more)

    @property
    def ok(self) -> bool:
        """Whether no finding fails it."""
        return all(result.ok for result in self.results)

    @property
    def not_asked(self) -> list[RuleResult]:
        """Rules that the policy wants and that could not be asked."""
        return [one for one in self.results if one.skipped is not None and one.severity is not Severity.OFF]

    @property
    def findings(self) -> list[Finding]:
        """All that are listed, in the order of rules and then of addresses."""
        return [finding for result in self.results for finding in result.findings]

    def totals(self) -> Counter[str]:
        """How many findings there are of each severity, and how many are ``excepted``."""
        return Counter("excepted" if found.excepted else found.severity.value for found in self.findings)


def audit(space: Space, policy: Policy | None = None, *, pat: int | None = None, user_half_only: bool = False) -> Audit:
    """Ask every rule that *policy* does not turn off about *space*.

    *pat* is the PAT MSR, where it is known. *user_half_only* asks what may differ from another root of its kernel.
    `TooManyRuns` where the tables unfold into more than can be held.
    """
    job = _Job(Views(space, user_half_only=user_half_only), policy or Policy(), pat)
    results = tuple(job.result(rule) for rule in RULES)
    return Audit(space, job.policy, results, tuple(job.views.limits))


class _Job:
    """One audit while it runs."""

    def __init__(self, views: Views, policy: Policy, pat: int | None) -> None:
        self.views, self.policy = views, policy
        self.checks: dict[str, RuleCheck] = {**_CHECKS, "memory-type-conflict": alias_checks.MemoryTypes(pat)}

    def result(self, rule: AuditRule) -> RuleResult:
        """What comes of one rule."""
        severity = self.policy.severity(rule.name)
        reason = self._not_asked(rule, severity)
        if reason is not None:
            return RuleResult(rule, severity, skipped=reason)
        hits = list(islice(self.checks[rule.name](self.views), MAX_HITS + 1))
        findings = tuple(self._findings(rule, severity, hits[:MAX_HITS]))
        return RuleResult(rule, severity, findings, cut=len(hits) > MAX_HITS)

    def _not_asked(self, rule: AuditRule, severity: Severity) -> str | None:
        if severity is Severity.OFF:
            return f"turned off by {self.policy.name}"
        if rule.name in ("executable-direct-map", "guard-mapped") and not self.views.space.areas.areas:
            return self.views.space.areas.how
        if self.views.user_half_only and rule.name in KERNEL_RULES:
            return "about the kernel half, which was looked at under another root"
        register = _REGISTER_RULES.get(rule.name)
        known = self.views.space.controls.named()
        if register is not None and known[register].value is None:
            return f"{register} is not known: {known[register].how}; --as-if gives it"
        return None

    def _findings(self, rule: AuditRule, severity: Severity, hits: list[Hit]) -> Iterator[Finding]:
        space = self.views.space
        trampoline = is_trampoline(space.tables)
        symbols = space.symbols if self.policy.has_symbols else NO_SYMBOLS
        for number, hit in enumerate(hits):
            at = None if hit.window is None else hit.window.start
            area = None if at is None else space.areas.name_at(at)
            start = None if at is None else space.base_at(at)
            places = [at, *hit.aliases[:1]] if at is not None and number < MAX_EVIDENCE else []
            yield Finding(
                rule,
                severity,
                hit.window,
                hit.phys,
                area,
                hit.message,
                hit.aliases,
                tuple(space.path(va) for va in places),
                self.policy.reason_for(rule.name, hit.window, hit.phys, area, start, symbols)
                or (TRAMPOLINE_REASON if trampoline and _in_user_half(hit) else None),
                space.root.value,
                start,
                self.policy.fail_on,
            )


def _in_user_half(hit: Hit) -> bool:
    """Whether any of its addresses lies in the lower half."""
    return any(at in USER_HALF for at in (*hit.aliases, *([] if hit.window is None else [hit.window.start])))
