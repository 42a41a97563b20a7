"""What a guest is: its mode, roots, bases and areas, each with its evidence."""
