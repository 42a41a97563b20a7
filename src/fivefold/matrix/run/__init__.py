"""One run of one cell: boot it, watch it, look at it, say what came of it."""
