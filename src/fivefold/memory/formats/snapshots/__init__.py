"""What machines are saved in: registers and memory of a virtual machine, in files of their own."""
