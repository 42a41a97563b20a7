"""Results for people, one command a module, with its JSON and CSV."""
