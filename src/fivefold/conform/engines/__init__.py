"""What runs cases: in this process, or in a machine that boots our payload."""
