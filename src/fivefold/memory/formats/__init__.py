"""Files that hold physical memory, one format a module."""
