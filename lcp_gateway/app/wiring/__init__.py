"""One module for each package: its parts, built from the settings. No decisions are made here."""


class WiringError(Exception):
    """A part cannot be made as the settings say; the message says why."""
