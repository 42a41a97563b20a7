"""A process for each run, which starts the machine and cleans up when either of the two is killed."""
