"""Reports of x86-64 exceptions by others than Linux and the emulators, and what is refused as another machine's."""
