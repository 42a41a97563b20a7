"""From the first instruction to the kernel proper: entries, the decision, the first tables, the loader's word."""
