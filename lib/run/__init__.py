"""A run of the program: its options, processes, devices and output."""
