"""What changed between two address spaces."""
