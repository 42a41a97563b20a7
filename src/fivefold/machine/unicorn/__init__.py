"""Unicorn as an engine, in this process, with what it lacks of a CPU supplied."""
