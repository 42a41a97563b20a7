"""Reading page tables: the kernel's own, and on the host any guest's."""
