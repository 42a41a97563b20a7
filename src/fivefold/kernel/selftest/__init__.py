"""The kernel checks itself, and faults on purpose."""
