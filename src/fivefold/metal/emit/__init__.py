"""The back end: from a checked unit to LLVM IR, to objects, to one linked file."""
