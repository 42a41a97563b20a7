"""Second-level tables: from a guest's physical addresses to the host's, by EPT, NPT or VT-d."""
