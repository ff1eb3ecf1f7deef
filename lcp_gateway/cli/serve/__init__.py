"""The commands that run a gateway or a node in this process."""
