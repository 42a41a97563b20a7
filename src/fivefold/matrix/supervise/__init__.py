"""A process of its own for each run, which starts the machine and cleans up, whoever of the two is killed."""
