"""Fivefold inside other programs: what they load, and what tells them where it is."""
