"""Bochs as a child process: our ISO on a machine that forgives less than QEMU, and shows only its serial port."""
