"""A program on the host: as native code, or as plain Python."""
