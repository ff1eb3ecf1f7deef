"""The commands that start, stop and look after a gateway in the background."""
