"""Thin commands over the library.

Private: nothing in here is part of the public interface (see `fivefold`).
"""
