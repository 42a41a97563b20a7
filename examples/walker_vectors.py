"""Hold a page-table walker against `fivefold vectors`: this one is ten lines, and yours goes in its place.

fivefold vectors -o vectors.json && python examples/walker_vectors.py vectors.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def walk(read, cr3: int, levels: int, phys_bits: int, va: int) -> int | None:  # type: ignore[no-untyped-def]
    """The physical address of *va*, or None where an entry is absent or malformed. No rights are looked at."""
    width, table = 12 + 9 * levels, cr3 & ~0xFFF
    if (va + (1 << (width - 1))) % (1 << 64) >> width:
        return None
    for level in range(levels, 0, -1):
        shift = 3 + 9 * level
        entry = read(table + 8 * (va >> shift & 511))
        large = level in (2, 3) and entry >> 7 & 1
        low = (1 << shift) - (1 << 13) if large else 0
        reserved = (1 << 52) - (1 << phys_bits) | low | (1 << 7 if level > 3 else 0)
        if not entry & 1 or entry & reserved:
            return None
        if large or level == 1:
            return entry & (1 << 52) - (1 << shift) | va & (1 << shift) - 1
        table = entry & (1 << 52) - (1 << 12)
    return None


def main() -> int:
    document = json.loads(Path(sys.argv[1]).read_text())
    wrong = told = 0
    for vector in document["vectors"]:
        memory = {int(word["at"], 16): int(word["value"], 16) for word in vector["memory"]}
        registers, outcome = vector["registers"], vector["outcome"]
        if not outcome["allowed"] or not int(registers["efer"], 16) >> 11 & 1:
            continue  # this walker knows no rights, and not what bit 63 is without NXE
        levels = 5 if int(registers["cr4"], 16) >> 12 & 1 else 4
        for page in outcome["pages"]:
            told += 1
            cr3, bits = int(registers["cr3"], 16), document["cpu"]["phys_bits"]
            found = walk(lambda at, words=memory: words.get(at, 0), cr3, levels, bits, int(page["va"], 16))
            wrong += found != int(page["pa"], 16)
    print(f"{told} translations, {wrong} wrong")
    return 1 if wrong or not told else 0


if __name__ == "__main__":
    sys.exit(main())
