"""What drgn makes of a kernel's own kallsyms, against what Fivefold does: the same names at the same addresses?

    python bench/witness_names.py CORE [--count 3000]     # needs drgn, and a core of Linux 6.0 or later with VMCOREINFO

Addresses are drawn from Fivefold's symbols of the kernel itself; every name that drgn has there must be among
Fivefold's at that address. Status 1 where one is not.
"""

from __future__ import annotations

import argparse
import random
import sys

from fivefold.survey.space import open_space


def main() -> int:
    """One line."""
    import drgn
    from drgn.helpers.linux.kallsyms import load_vmlinux_kallsyms

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("core")
    parser.add_argument("--count", type=int, default=3000)
    asked = parser.parse_args()
    program = drgn.Program()
    program.set_core_dump(asked.core)
    program.register_symbol_finder("kallsyms", load_vmlinux_kallsyms(program), enable_index=0)
    named = wrong = 0
    with open_space(asked.core) as space:
        ours: dict[int, set[str]] = {}
        for span in space.symbols.spans:
            for one in span if span.module is None else ():
                ours.setdefault(one.address, set()).add(one.name)
        for at in random.Random(1).sample(sorted(ours), min(asked.count, len(ours))):
            theirs = {symbol.name for symbol in program.symbols(at) if symbol.address == at}
            named += bool(theirs)
            wrong += not theirs <= ours[at]
    print(f"{asked.count} of {len(ours)} addresses: drgn {drgn.__version__} names {named}, {wrong} of them otherwise")
    return int(wrong > 0 or not named)


if __name__ == "__main__":
    sys.exit(main())
