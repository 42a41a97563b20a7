"""The memory manager, written once in the metal subset (`docs/metal.md`).

One subject a file, with the kernel's names for the kernel's things. The modules
run as plain Python, as native code on the host, and in the booted image; nothing
here may use more of Python than the subset has.

Source to read and to build from, and no part of the public interface (see `fivefold`).
"""
