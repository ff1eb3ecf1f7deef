"""The journal: every purchase, written before it is paid, and what became of it."""
