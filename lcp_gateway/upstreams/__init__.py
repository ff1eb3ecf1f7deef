"""One adapter for each kind of compute; each implements the heart's ``Upstream``."""
