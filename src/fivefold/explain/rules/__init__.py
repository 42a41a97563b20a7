"""What the CPU refuses, and why: one rule at a time."""
