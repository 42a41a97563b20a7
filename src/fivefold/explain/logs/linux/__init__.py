"""What Linux prints when it faults: reports, the frames in them, the facts in these."""
