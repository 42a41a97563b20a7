"""How results look: text for people."""
