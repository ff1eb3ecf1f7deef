"""A node over lnd: its settings on the command line, its parts put together, and the program that is nothing else."""
