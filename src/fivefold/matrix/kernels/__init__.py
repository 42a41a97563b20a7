"""Kernels as they come: bzImage, vmlinux, unified EFI image, alone or inside a Debian package."""
