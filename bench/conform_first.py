"""The cases that `fivefold conform` runs first: `src/fivefold/conform/cases/first.txt`.

    python bench/conform_first.py > src/fivefold/conform/cases/first.txt

Of the systematic product, the first case that shows each rule in each mode, then the first for each kind of access too,
and of register writes and INVPCID the first for each instruction and for addresses that the mode has and has not, by
what an Intel CPU with everything and an AMD one must do: a short run meets every rule. A minute or two.
"""

from __future__ import annotations

from dataclasses import replace

from fivefold.arch import Vendor
from fivefold.conform.cases.product import strata_in_turn
from fivefold.conform.judging.expect import expect
from fivefold.conform.judging.report import EVERYTHING, access_label
from fivefold.conform.judging.rules import rule_of

CPUS = (EVERYTHING, replace(EVERYTHING, vendor=Vendor.AMD))


def main() -> None:
    rules: dict[tuple[str, str], str] = {}
    kinds: dict[tuple[object, ...], str] = {}
    for case in strata_in_turn():
        for cpu in CPUS:
            if (expected := expect(case, cpu)).hidden:
                continue
            rule = rule_of(case, expected)[0]
            rules.setdefault((rule, case.mode), case.id)
            is_value = case.what.register is not None or case.what.invpcid is not None
            more = (case.action, case.paging.is_canonical(case.va)) if is_value else ()
            kinds.setdefault((rule, access_label(case), case.mode, *more), case.id)
    print("\n".join(dict.fromkeys((*rules.values(), *kinds.values()))))


if __name__ == "__main__":
    main()
