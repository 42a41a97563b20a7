"""A guest's memory behind second-level tables in a host's memory: EPT, NPT or VT-d."""
