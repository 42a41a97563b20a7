"""The image that runs cases on a machine: with real exceptions, in both modes."""
