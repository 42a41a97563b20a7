"""Questions to the address spaces of a guest.

Private: `fivefold` has the names that are public, such as `fivefold.Space`.
"""
