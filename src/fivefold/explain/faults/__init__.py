"""What is said of each exception, and of one that could not be delivered."""
