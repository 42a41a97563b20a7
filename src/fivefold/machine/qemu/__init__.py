"""QEMU as an engine: a child process with TCG or KVM."""
