"""Processes and the ways into the kernel: user halves, system calls, exceptions."""
