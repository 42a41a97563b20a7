"""QEMU's log (``-d int,cpu_reset``), its registers, and KVM's last words, folded into a trace.

QEMU's TCG prints, for an exception that it found: ``check_exception old: A new B``, where A is the
vector being delivered or 0xffffffff; then, for what it delivers (B, or 8 where the two make a
double fault): ``v=… e=… i=… cpl=… IP=… pc=… SP=… CR2=…`` and the registers; or ``Triple fault``.
So of an exception that escalates the log has neither error code nor CR2. Hardware interrupts
(``Servicing hardware INT=…`` before it) and ``int n`` have a ``v=`` line only. Older QEMU and patched ones
print no ``v=`` line, and none prints one in real mode.

Source: QEMU, ``target/i386/tcg/excp_helper.c`` and ``seg_helper.c``, 2.9 to 9.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from fivefold.arch import HAS_ERROR_CODE, Escalation, Vector, escalate
from fivefold.explain.logs.kvm_error import kvm_trace
from fivefold.explain.logs.links import link
from fivefold.explain.logs.register_text import parse_code, parse_registers
from fivefold.explain.logs.text.blocks import Block, blocks
from fivefold.explain.logs.text.lines import Line
from fivefold.explain.logs.trace import NO_VECTOR, Outcome, RaisedException, Trace

_HEX: Final = r"(?:0x)?([0-9a-f]{1,16})(?![0-9a-f])"
_CHECK: Final = re.compile(rf"check_exception old: *{_HEX} new:? *{_HEX}(?:, *cr2: *{_HEX})?(?:, *rip: *{_HEX})?", re.I)
_DELIVERED: Final = re.compile(
    r"\bv=([0-9a-f]{2}) e=([0-9a-f]{4,8}) i=([01]) cpl=([0-3]) IP=[0-9a-f]{4}:((?:[0-9a-f]{8}){1,2})(?![0-9a-z])"
    r"(?: pc=[0-9a-f]+ SP=[0-9a-f]{4}:((?:[0-9a-f]{8}){1,2})(?![0-9a-z])(?: CR2=((?:[0-9a-f]{8}){1,2})(?![0-9a-z]))?)?",
    re.I,
)
_SERVICED: Final = re.compile(r"Servicing hardware INT=0x([0-9a-f]{2})")

_MOST_CPUS: Final = 16
"""Exceptions that wait for their own line."""

_KEPT: Final = 24
"""Delivered exceptions that are remembered before the one that matters."""


@dataclass(slots=True)
class _Chain:
    """One exception and what its delivery led to; blocks are read only if they are needed."""

    exceptions: list[RaisedException] = field(default_factory=list)
    blocks: list[Block | None] = field(default_factory=list)
    doubled: bool = False
    tripled: bool = False

    @property
    def delivering(self) -> int:
        """The vector whose delivery is going on."""
        return int(Vector.DF) if self.doubled else self.exceptions[-1].vector

    def awaits(self, vector: int) -> bool:
        """Whether the line of *vector* is still to come: of what the last exception came to."""
        if self.exceptions[-1].during is None or self.blocks[-1] is not None:
            return False
        return vector == self.delivering

    def add(self, raised: RaisedException, block: Block | None) -> None:
        self.exceptions.append(raised)
        self.blocks.append(block)

    def read(self) -> tuple[RaisedException, ...]:
        """The exceptions with the registers of their blocks."""
        return tuple(_with_registers(s, b) for s, b in zip(self.exceptions, self.blocks, strict=True))


def read_qemu(lines: Sequence[Line], source: str) -> Trace | None:
    """What a log of QEMU, its registers, or a KVM error are about; None if *lines* are none of these."""
    log = QemuLog(source)
    for block in blocks(lines):
        log.feed(block)
    return log.trace()


class QemuLog:
    """Folds blocks one after the other; keeps a few, however long the log."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._chains: deque[_Chain] = deque(maxlen=_KEPT)
        self._first: list[_Chain] = []
        self._double: list[_Chain] = []
        self._pending: list[tuple[int, Block]] = []
        self._has_lines = False
        self._serviced: int | None = None
        self._registers: Block | None = None
        self._after: Block | None = None
        self._kvm: Block | None = None
        self._shown = 0
        self._is_announced = True
        self.total = 0
        self.resets = 0

    def feed(self, block: Block) -> None:
        """Take the next block of any kind; those of other dialects are left alone."""
        if block.kind == "check":
            self._check(block)
        elif block.kind == "delivered":
            self._take_delivery(block)
        elif block.kind == "interrupt":
            match = _SERVICED.search(block.head)
            self._serviced = int(match[1], 16) if match else None
        elif block.kind == "triple":
            self._triple()
        elif block.kind == "kvm":
            # QEMU repeats the message for each CPU; the first one has the registers.
            self._kvm = self._kvm if self._kvm and self._kvm.has_registers else block
        elif block.kind == "reset":
            self._reset(block)
        elif block.kind == "registers" or (block.kind == "cpu" and block.has_registers):
            self._shown += 1
            self._registers = self._registers or block

    def trace(self) -> Trace | None:
        """What came of it, None if nothing of this dialect was there."""
        self._flush()
        if self._kvm is not None and not self._first:
            return kvm_trace(self._kvm, self._source)
        chains = self._first or self._double or list(self._chains)
        if not chains:
            return self._registers_trace()
        chosen = _story(chains)
        if self._double and not any(chain is self._double[-1] for chain in chosen):
            # Nothing that runs after a double fault can be trusted, so the story begins there.
            chosen = _story(self._double) + chosen
        last = chosen[-1]
        exceptions = tuple(replace(raised, by_tcg=True) for chain in chosen for raised in chain.read())
        remarks = [] if self.resets < 2 else [f"{self.resets} triple faults in the log; this is the first"]
        after = parse_registers(self._after.text, "CPU reset") if self._after else None
        return Trace(
            self._source,
            "QEMU log",
            exceptions,
            self._outcome(last),
            cpu=after or next((s.cpu for s in reversed(exceptions) if s.cpu), None),
            total=self.total,
            resets=self.resets,
            truncated=exceptions[0].during is not None,
            remarks=tuple(remarks),
        )

    def _outcome(self, chain: _Chain) -> Outcome:
        if chain.tripled:
            return "triple-fault"
        if len(chain.exceptions) > 1 or chain.doubled:
            return "double-fault"
        # After the last record of a log its handler may have run, or may not.
        return "unknown" if self._chains and chain is self._chains[-1] else "handled"

    # -- the kinds of block --------------------------------------------------------------

    def _check(self, block: Block) -> None:
        match = _CHECK.search(block.head)
        if match is None:
            return
        if not self._has_lines or len(self._pending) >= _MOST_CPUS:
            self._flush()
        old, new = int(match[1], 16), int(match[2], 16)
        self.total += 1
        if old == NO_VECTOR:
            self._pending.append((new, block))
            return
        raised = RaisedException(new, old, cr2=_number(match[3]), rip=_number(match[4]), line=block.number)
        chain = next((c for c in reversed(self._chains) if c.delivering == old and not c.tripled), None)
        if chain is None:
            chain = self._open(_Chain())
        if old == Vector.DF and escalate(old, new) is Escalation.TRIPLE:
            self._shut_down(chain, raised)
            return
        chain.add(raised, block if block.has_registers else None)
        chain.doubled = new == Vector.DF or escalate(old, new) is Escalation.DOUBLE
        if chain.doubled and not self._double:
            self._double = self._up_to(chain)

    def _take_delivery(self, block: Block) -> None:
        match = _DELIVERED.search(block.head)
        if match is None:
            return
        vector = int(match[1], 16)
        self._has_lines = True
        # With several CPUs others may have found something meanwhile.
        pending = next((one for one in self._pending if one[0] == vector), None)
        if pending is not None:
            self._pending.remove(pending)
        serviced, self._serviced = self._serviced, None
        external = vector == serviced and pending is None
        raised = _delivered(match, block.number, external)
        if pending is None and not external and self._completes(raised, block):
            return
        self.total += pending is None
        self._add(raised, block)

    def _completes(self, raised: RaisedException, block: Block) -> bool:
        """Whether *raised* is what an exception in the delivery of another came to: a double fault, or itself."""
        chain = next((c for c in reversed(self._chains) if c.awaits(raised.vector)), None)
        if chain is None:
            return False
        if chain.exceptions[0].rip not in (None, raised.rip):
            chain = self._rehome(chain, raised.rip)
        if not chain.doubled:
            chain.exceptions[-1] = replace(raised, during=chain.exceptions[-1].during)
        chain.blocks[-1] = block
        return True

    def _rehome(self, chain: _Chain, rip: int | None) -> _Chain:
        """With several CPUs the latest chain may be another's: RIP decides, for it does not move meanwhile."""
        first = chain.exceptions[0].vector
        alike = (c for c in reversed(self._chains) if len(c.exceptions) == 1 and c.exceptions[0].vector == first)
        owner = next((c for c in alike if c.exceptions[0].rip == rip), None)
        if owner is None or len(chain.exceptions) != 2:
            return chain
        owner.add(chain.exceptions.pop(), chain.blocks.pop())
        owner.doubled, chain.doubled = chain.doubled, False
        if self._double and self._double[-1] is chain:
            self._double = self._up_to(owner)
        return owner

    def _up_to(self, chain: _Chain) -> list[_Chain]:
        """The exceptions that are remembered, *chain* the last."""
        kept = list(self._chains)
        return kept[: next(i for i, one in enumerate(kept) if one is chain) + 1]

    def _shut_down(self, chain: _Chain, raised: RaisedException) -> None:
        """An exception in the delivery of a double fault: QEMU says ``Triple fault`` under cpu_reset only."""
        chain.add(raised, None)
        chain.doubled = chain.tripled = True
        self.resets += 1
        self._is_announced = False
        if not self._first:
            self._first = self._up_to(chain)

    def _triple(self) -> None:
        self._flush()
        last = next((c for c in reversed(self._chains) if c.tripled), None)
        if last is not None and not self._is_announced:
            self._is_announced = True
            return
        self.resets += 1
        self._is_announced = True
        chain = next((c for c in reversed(self._chains) if len(c.exceptions) > 1 or c.doubled), None)
        if chain is None and self._chains:
            chain = self._chains[-1]
        if chain is not None:
            chain.tripled = True
        if not self._first and chain is not None:
            self._first = self._up_to(chain)

    def _reset(self, block: Block) -> None:
        # After a triple fault the dump shows the state that led to it, CR2 of the last fault included.
        if self._first and self._after is None and self.resets == 1:
            state = parse_registers(block.text, "CPU reset")
            self._after = block if state and (state.cr0 or 0) >> 31 else None
        elif not self._chains and self._registers is None:
            state = parse_registers(block.text, "CPU reset")
            self._registers = block if state and (state.cr0 or 0) >> 31 else None

    # -- keeping -------------------------------------------------------------------------

    def _flush(self) -> None:
        """Exceptions that were found and whose own line never came: QEMU that prints none."""
        waiting, self._pending = self._pending, []
        for vector, block in waiting:
            match = _CHECK.search(block.head)
            cr2, rip = (_number(match[3]), _number(match[4])) if match else (None, None)
            self._add(RaisedException(vector, cr2=cr2, rip=rip, line=block.number), block)

    def _open(self, chain: _Chain) -> _Chain:
        self._chains.append(chain)
        return chain

    def _add(self, raised: RaisedException, block: Block) -> None:
        last = self._chains[-1] if self._chains else None
        if last is not None and len(last.exceptions) == 1 and _is_same(last.exceptions[0], raised):
            before = last.exceptions[0]
            last.exceptions[0] = replace(before, repeats=before.repeats + 1, last_rsp=raised.rsp)
            return
        chain = self._open(_Chain())
        chain.add(raised, block)

    # -- without exceptions ----------------------------------------------------------------

    def _registers_trace(self) -> Trace | None:
        if self._registers is None:
            return None
        text = self._registers.text
        remarks = [] if self._shown < 2 else [f"registers of {self._shown} CPUs; these are the first"]
        outcome: Outcome = "reset" if self._registers.kind == "reset" else "unknown"
        if self.resets:
            outcome = "triple-fault"
        cpu = parse_registers(text, "registers")
        return Trace(self._source, "registers", (), outcome, cpu, parse_code(text), remarks=tuple(remarks))


def _delivered(match: re.Match[str], line: int, external: bool) -> RaisedException:
    """What a `v=` line says. It does not distinguish an interrupt on a low vector from the exception of that number."""
    vector = int(match[1], 16)
    software = match[3] == "1"
    rip = match[5]
    # All addresses of a line are equally wide; one that is not was cut.
    rsp, cr2 = (digits if digits and len(digits) == len(rip) else None for digits in (match[6], match[7]))
    raised = not software and not external
    return RaisedException(
        vector,
        None,
        int(match[2], 16) if vector in HAS_ERROR_CODE and raised else None,
        _number(cr2) if vector == Vector.PF and raised else None,
        int(rip, 16),
        _number(rsp),
        int(match[4]),
        software,
        line=line,
        external=external,
    )


def _number(text: str | None) -> int | None:
    return None if text is None else int(text, 16)


def _is_same(one: RaisedException, other: RaisedException) -> bool:
    return (one.vector, one.rip, one.cr2, one.error_code, one.software) == (
        other.vector,
        other.rip,
        other.cr2,
        other.error_code,
        other.software,
    )


def _with_registers(raised: RaisedException, block: Block | None) -> RaisedException:
    cpu = parse_registers(block.body, "QEMU log") if block else None
    if cpu is None:
        return raised
    raised = replace(raised, cpu=cpu)
    if raised.rip is None:
        raised = replace(raised, rip=cpu.rip)
    if raised.rsp is None:
        raised = replace(raised, rsp=cpu.rsp)
    if raised.cpl is None:
        raised = replace(raised, cpl=cpu.general.get("cpl"))
    if raised.cr2 is None and raised.vector == Vector.PF and raised.during is None:
        # Where there is no `v=` line the dump is what shows CR2.
        raised = replace(raised, cr2=cpu.cr2)
    return raised


def _is_fault(raised: RaisedException) -> bool:
    return raised.vector < 32 and not raised.software and not raised.external


def _story(chains: list[_Chain]) -> list[_Chain]:
    """The chain that matters, with those before it that led straight to it.

    That is the last one that escalated, or else the last one that is not an interrupt. QEMU forgets
    what it delivers if that is benign, so its chains are joined here.
    """
    end = len(chains) - 1
    if not chains[end].tripled:
        escalated = [i for i, chain in enumerate(chains) if len(chain.exceptions) > 1]
        faults = [i for i, chain in enumerate(chains) if _is_fault(chain.exceptions[0])]
        end = (escalated or faults or [end])[-1]
    explained = [chains[end]]
    # Other CPUs' exceptions may lie between.
    for earlier in reversed(chains[:end]):
        linked = link(earlier.read()[0], explained[0].read()[0]) if len(earlier.exceptions) == 1 else None
        if linked is not None:
            explained[0].exceptions[0] = linked
            explained.insert(0, earlier)
        elif not _is_elsewhere(earlier, explained[0]):
            break
    return explained


def _is_elsewhere(one: _Chain, other: _Chain) -> bool:
    """Whether the two were raised on different CPUs, each of which has a task register of its own."""
    first, second = one.read()[0].cpu, other.read()[0].cpu
    if first is None or second is None:
        return False
    return first.segments.get("tr") != second.segments.get("tr")
