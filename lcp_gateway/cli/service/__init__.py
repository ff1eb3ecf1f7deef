"""The commands that start, stop and monitor a gateway in the background."""
