"""What the registers of a CPU make of its page tables: the kind of paging, the rights, the bits of encryption."""
