"""The image as ELF, EFI and ISO file, from the kernel's sources."""
