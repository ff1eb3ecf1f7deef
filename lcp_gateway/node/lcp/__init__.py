"""The Lightning Compute Protocol, versions 0.2 and 0.3, as bytes and events: no I/O, no clock, no randomness of its own."""
