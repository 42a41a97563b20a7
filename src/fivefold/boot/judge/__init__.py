"""A finished boot checked from outside, with registers, memory and `arch/`."""
