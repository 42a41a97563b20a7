/* The other side of map.py: one 4 KiB page after another into five levels of tables, from a bump allocator. */

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { PRESENT = 1, LARGE = 1 << 7, TABLE = 0x67 };
#define FRAME 0x000ffffffffff000ull

static unsigned char *memory;
static uint64_t next_table, end_of_memory;

static uint64_t *at(uint64_t physical) { return (uint64_t *)(memory + physical); }

static uint64_t take_table(void)
{
	if (next_table == end_of_memory)
		return 0;
	uint64_t table = next_table;
	next_table += 4096;
	memset(at(table), 0, 4096);
	return table;
}

static uint64_t *slot(uint64_t table, uint64_t va, int shift) { return at(table) + (va >> shift & 511); }

static bool link_table(uint64_t *entry)
{
	if (*entry & PRESENT)
		return !(*entry & LARGE);
	uint64_t table = take_table();
	if (!table)
		return false;
	*entry = table | TABLE;
	return true;
}

__attribute__((noinline)) static bool map_page(uint64_t top, uint64_t va, uint64_t pa, uint64_t protection)
{
	uint64_t *entry = slot(top, va, 48);
	for (int shift = 39; shift >= 12; shift -= 9) {
		if (!link_table(entry))
			return false;
		entry = slot(*entry & FRAME, va, shift);
	}
	if (*entry & PRESENT)
		return false;
	*entry = pa | protection;
	return true;
}

/* Physical addresses count from the start of `base`; tables are taken from `first` up. */
void start(unsigned char *base, uint64_t first, uint64_t end)
{
	memory = base;
	next_table = first;
	end_of_memory = end;
}

uint64_t taken(void) { return next_table; }

/* Page i goes to slot (i * step) mod slots behind `va`; returns how many could be mapped. */
uint64_t map_pages(uint64_t top, uint64_t va, uint64_t count, uint64_t step, uint64_t slots, uint64_t protection)
{
	uint64_t done = 0;
	for (uint64_t i = 0; i < count; i++)
		done += map_page(top, va + ((i * step & (slots - 1)) << 12), i << 12, protection);
	return done;
}
