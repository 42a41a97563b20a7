"""Does this kernel keep the promise of one image for both modes? Cells, their runs, and the verdict."""
