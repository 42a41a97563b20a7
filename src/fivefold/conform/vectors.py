"""Test vectors for page-table walkers in any language: cases with their memory and outcome, as one JSON document.

The schema is `vectors.schema.json` beside this file and is described in `docs/conform.md`. A vector needs no
knowledge of this project: pages of memory, registers, one access, and what the CPU must do.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from importlib import resources
from typing import Any, Final, TextIO

from fivefold.arch import Allowed, Cpu, Fault
from fivefold.conform.cases.case import Case
from fivefold.conform.judging.expect import Expected, expect
from fivefold.conform.judging.rules import rule_of
from fivefold.conform.places import driver_entries
from fivefold.conform.run import choose_cases

SCHEMA: Final = "fivefold.vectors/1"
CPU: Final = Cpu(phys_bits=46, pcid=False)
"""The CPU of the vectors; the document says so too."""


def vectors(count: int, seed: int, modes: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """*count* vectors, of accesses only; half from the systematic product."""
    made = 0
    for case in _endless(count, seed, modes):
        # A descriptor that is marked makes two accesses, and a return reads a stack too.
        if case.what.access is None or case.action == "accessed" or case.what.scratch or case.what.then:
            continue
        expected = expect(case, CPU)
        if expected.hidden:
            continue
        yield vector(case, expected)
        made += 1
        if made == count:
            return


def _endless(count: int, seed: int, modes: tuple[str, ...]) -> Iterable[Case]:
    size = 2 * count
    while True:
        yield from choose_cases(size, seed, modes)
        seed, size = seed + 1, count


def vector(case: Case, expected: Expected) -> dict[str, Any]:
    """One vector: everything that a walker needs, addresses as hexadecimal text."""
    state, how = case.state(), case.what.access
    assert how is not None
    levels = int(case.paging.top)
    used = {step.at for step in _steps(expected)} | set(case.stores())
    words = driver_entries(levels) | {step.at: step.entry.raw for step in _steps(expected)} | case.stores()
    memory = {pa: raw for pa, raw in words.items() if pa in used and raw}
    return {
        "id": case.id,
        "memory": [{"at": hex(pa), "value": hex(raw)} for pa, raw in sorted(memory.items())],
        "registers": {
            "cr0": hex(state.cr0), "cr3": hex(state.cr3), "cr4": hex(state.cr4), "efer": hex(state.efer),
            "rflags": hex(state.rflags), "cpl": state.cpl, "pkru": hex(state.pkru), "pkrs": hex(state.pkrs),
        },
        "access": {
            "va": hex(case.va), "kind": how.kind.value, "size": how.size, "implicit": how.implicit, "stack": how.stack,
        },
        "outcome": _outcome(expected),
        "rule": rule_of(case, expected)[0],
    }  # fmt: skip


def _steps(expected: Expected) -> Iterator[Any]:
    if isinstance(expected.verdict, Allowed):
        for page in expected.verdict.pages:
            yield from page.steps
    elif isinstance(expected.verdict, Fault):
        yield from expected.verdict.steps


def _outcome(expected: Expected) -> dict[str, Any]:
    flags = [
        {"at": hex(part.at), "must": hex(part.must & ~part.before), "may": hex(part.may & ~part.before)}
        for part in expected.histories
    ]
    verdict = expected.verdict
    if isinstance(verdict, Allowed):
        pages = [{"va": hex(page.va), "pa": hex(page.pa), "page_size": hex(page.page.span)} for page in verdict.pages]
        return {"allowed": True, "pages": pages, "accessed_dirty": flags}
    cr2 = None if expected.cr2 is None else hex(expected.cr2)
    return {"allowed": False, "vector": expected.vector, "error_code": hex(expected.error_code), "cr2": cr2,
            "accessed_dirty": flags}  # fmt: skip


def write_vectors(out: TextIO, count: int, seed: int, modes: tuple[str, ...]) -> None:
    """Write the document, a vector a line."""
    head = {"schema": SCHEMA, "seed": seed, "count": count, "cpu": {"phys_bits": CPU.phys_bits, "vendor": "intel",
            "gib_pages": True}}  # fmt: skip
    out.write(json.dumps(head)[:-1] + ', "vectors": [\n')
    for number, one in enumerate(vectors(count, seed, modes)):
        out.write(("" if number == 0 else ",\n") + json.dumps(one, separators=(",", ":")))
    out.write("\n]}\n")


def schema_text() -> str:
    """The JSON Schema of the document."""
    return (resources.files("fivefold.conform") / "vectors.schema.json").read_text(encoding="utf-8")
