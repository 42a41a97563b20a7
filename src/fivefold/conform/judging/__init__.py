"""What the CPU must do with a case, and how an engine's outcome is held against it."""
