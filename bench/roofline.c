/*
 * What a reader of page tables cannot do without, each alone: the other side of roofline.py. Tables of 512 words are
 * read in the order that `order` gives, as numbers of rows of `tables`.
 */
#include <stdint.h>

#define WORDS 512
#define LINE 8

/* Every word read once, and nothing else asked of it. */
uint64_t sum(const uint64_t *tables, const uint32_t *order, uint64_t count)
{
	uint64_t total = 0;

	for (uint64_t i = 0; i < count; i++) {
		const uint64_t *table = tables + (uint64_t)order[i] * WORDS;
		for (int j = 0; j < WORDS; j++)
			total += table[j];
	}
	return total;
}

/* The same, with the next table's lines asked for while this one is added up. */
uint64_t sum_ahead(const uint64_t *tables, const uint32_t *order, uint64_t count)
{
	uint64_t total = 0;

	for (uint64_t i = 0; i < count; i++) {
		const uint64_t *table = tables + (uint64_t)order[i] * WORDS;
		const uint64_t *next = tables + (uint64_t)order[i + 1 < count ? i + 1 : i] * WORDS;
		for (int j = 0; j < WORDS; j += LINE) {
			__builtin_prefetch(next + j);
			for (int k = 0; k < LINE; k++)
				total += table[j + k];
		}
	}
	return total;
}

/* Each entry compared with the one before it: what merging asks at least, and no branch. Returns where runs break. */
uint64_t compare(const uint64_t *tables, const uint32_t *order, uint64_t count)
{
	uint64_t breaks = 0;

	for (uint64_t i = 0; i < count; i++) {
		const uint64_t *table = tables + (uint64_t)order[i] * WORDS;
		const uint64_t *next = tables + (uint64_t)order[i + 1 < count ? i + 1 : i] * WORDS;
		for (int j = 0; j < WORDS; j += LINE) {
			__builtin_prefetch(next + j);
			for (int k = j ? 0 : 1; k < LINE; k++)
				breaks += table[j + k] - table[j + k - 1] != (table[j + k] & 1) << 12;
		}
	}
	return breaks;
}

struct run {
	uint64_t first, length;
};

/* Runs written down with one branch for each entry: what the ends of runs cost, since nothing tells where they lie. */
uint64_t merge(const uint64_t *tables, const uint32_t *order, uint64_t count, struct run *out)
{
	uint64_t found = 0, wanted = 0;

	for (uint64_t i = 0; i < count; i++) {
		const uint64_t *table = tables + (uint64_t)order[i] * WORDS;
		const uint64_t *next = tables + (uint64_t)order[i + 1 < count ? i + 1 : i] * WORDS;
		for (int j = 0; j < WORDS; j += LINE) {
			uint64_t differ = 0;
			__builtin_prefetch(next + j);
			for (int k = 0; k < LINE; k++)
				differ |= table[j + k] ^ (wanted + ((uint64_t)k << 12));
			if (wanted && !differ) {
				wanted += (uint64_t)LINE << 12;
				out[found - 1].length += LINE;
				continue;
			}
			for (int k = 0; k < LINE; k++) {
				uint64_t entry = table[j + k];
				if (entry == wanted && entry) {
					out[found - 1].length++;
					wanted += 1 << 12;
				} else if (entry & 1) {
					out[found++] = (struct run){ entry, 1 };
					wanted = entry + (1 << 12);
				} else {
					wanted = 0;
				}
			}
		}
	}
	return found;
}
