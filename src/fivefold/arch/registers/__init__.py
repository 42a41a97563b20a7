"""The registers that govern paging: which writes are legal, and what they drop from the caches."""
