"""The front end: from modules of the subset to a checked unit."""
