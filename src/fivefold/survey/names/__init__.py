"""Names for addresses and roots: symbols of files, the kernel's own kallsyms and BTF in memory, processes."""
