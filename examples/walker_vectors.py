"""Hold a page-table walker against `fivefold vectors`: this one is ten lines, and yours goes in its place.

fivefold vectors -o vectors.json && python examples/walker_vectors.py vectors.json
"""

import json
import sys


def walk(memory: dict[int, int], cr3: int, levels: int, phys_bits: int, va: int) -> int | None:
    """The physical address of *va*, or None where an entry is absent or malformed. No rights are looked at."""
    table = cr3 & ~0xFFF
    for level in range(levels, 0, -1):
        shift = 3 + 9 * level
        entry = memory.get(table + 8 * (va >> shift & 511), 0)
        large = level in (2, 3) and entry >> 7 & 1
        reserved = (1 << 52) - (1 << phys_bits) | ((1 << shift) - (1 << 13) if large else 0) | (level > 3) << 7
        if not entry & 1 or entry & reserved:
            return None
        if large or level == 1:
            return entry & (1 << 52) - (1 << shift) | va & (1 << shift) - 1
        table = entry & (1 << 52) - (1 << 12)
    return None


with open(sys.argv[1]) as file:  # noqa: PTH123 - three lines less
    document = json.load(file)
wrong = told = 0
for vector in document["vectors"]:
    memory = {int(word["at"], 16): int(word["value"], 16) for word in vector["memory"]}
    cr3, cr4, efer = (int(vector["registers"][name], 16) for name in ("cr3", "cr4", "efer"))
    if efer >> 11 & 1:  # this walker does not know what bit 63 is without NXE
        for page in vector["outcome"].get("pages", ()):
            levels, bits = 5 if cr4 >> 12 & 1 else 4, document["cpu"]["phys_bits"]
            told += 1
            wrong += walk(memory, cr3, levels, bits, int(page["va"], 16)) != int(page["pa"], 16)
print(f"{told} translations, {wrong} wrong")
sys.exit(1 if wrong or not told else 0)
