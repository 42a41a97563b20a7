"""Another kernel, or this one again: kexec and hibernation."""
