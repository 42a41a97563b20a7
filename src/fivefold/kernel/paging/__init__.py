"""Page tables: the mode, entries, folding, memory in and pages out, ranges mapped and freed."""
