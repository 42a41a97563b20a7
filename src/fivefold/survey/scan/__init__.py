"""One pass over the tables, and what is read off it: regions, leaves, frames, translations."""
