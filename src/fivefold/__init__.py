"""x86-64 paging with four and five levels, chosen at boot."""
