"""How results look: text for people.

Private: nothing in here is part of the public interface (see `fivefold`).
"""
