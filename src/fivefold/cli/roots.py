"""`fivefold roots`: top-level tables in a memory, found without registers."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from fivefold.cli.source_options import JsonOption, SourceChoice, on_source_without

if TYPE_CHECKING:
    from fivefold.memory import Source
    from fivefold.survey.guest.identify import GivenPaging


@on_source_without("cr3", "cr4", "cpu", "force")
def roots(chosen: SourceChoice, as_json: JsonOption = False) -> int:
    """Find page-table roots in all of memory, group those of one kernel, and say what speaks for each.

    Where a Linux kernel carries its symbols and its types (kallsyms and BTF), say whose they are: pid and name.
    --levels and --phys-bits narrow what is looked for. Status 1 when there are none.
    """
    from fivefold.report.json_text import write_document
    from fivefold.report.sheet import sheet
    from fivefold.report.text.roots import roots_json, write_roots
    from fivefold.survey.guest.roots import find_roots
    from fivefold.survey.names.root_owners import root_owners

    given = chosen.check_given()
    with chosen.open_source() as source:
        found = find_roots(source, given.levels, given.phys_bits, given.c_bit, progress=chosen.progress)
        owners = root_owners(source, found, chosen.symbols)
        if as_json:
            write_document(roots_json(source, found, owners), sys.stdout)
        else:
            write_roots(found, owners, sheet())
        if not found:
            depth = f" of {given.levels} levels" if given.levels else ""
            hint = _encrypted(source, given) if given.c_bit is None else ""
            print(f"fivefold: no page-table roots{depth} in {source.name}{hint}", file=sys.stderr)
    return 0 if found else 1


def _encrypted(source: Source, given: GivenPaging) -> str:
    """Whether there are roots with an encryption bit, at the places where CPUs have had it."""
    from fivefold.survey.guest.cpu.encryption import USUAL_BITS
    from fivefold.survey.guest.roots import find_roots

    found = {bit: len(find_roots(source, given.levels, given.phys_bits, bit)) for bit in USUAL_BITS}
    told = [f"{count} with --c-bit {bit}" for bit, count in found.items() if count]
    return f"; {' and '.join(told)}, as where memory is encrypted" if told else ""
