"""What a loader and a firmware do before the first instruction of the image."""
