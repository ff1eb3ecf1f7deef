"""One module for each room: what the settings make of it. Nothing is decided here."""


class WiringError(Exception):
    """A part cannot be made as the settings say; the message says why."""
