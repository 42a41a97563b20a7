/* One walk after the other, as a reader of a memory image would write it; the other side of translate.py. */

#include <stdint.h>

#define FRAME 0x000ffffffffff000ull
#define NOWHERE (~0ull)

static uint64_t walk(const char *memory, uint64_t base, uint64_t size, uint64_t root, uint64_t va)
{
	uint64_t table = root;

	for (int shift = 48; ; shift -= 9) {
		if (table - base >= size)
			return NOWHERE;
		uint64_t entry = *(const uint64_t *)(memory + (table - base) + 8 * (va >> shift & 511));
		if (!(entry & 1))
			return NOWHERE;
		if (shift == 12 || (shift <= 30 && entry & 0x80)) {
			uint64_t inside = (1ull << shift) - 1;
			return (entry & FRAME & ~inside) | (va & inside);
		}
		table = entry & FRAME;
	}
}

void translate(const char *memory, uint64_t base, uint64_t size, uint64_t root, const uint64_t *va, uint64_t *out,
	       uint64_t count)
{
	for (uint64_t i = 0; i < count; i++)
		out[i] = walk(memory, base, size, root, va[i]);
}
