"""The program that a kernel under test starts as its init: compiled from the subset, packed into an initramfs."""
