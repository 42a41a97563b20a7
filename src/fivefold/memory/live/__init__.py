"""Physical memory of something that runs: QEMU, a gdb stub, a process."""
