"""The image as an EFI application, and the firmware's runtime services in an address space of their own."""
