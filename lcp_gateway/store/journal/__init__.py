"""The journal: every purchase, written before it is paid, and its outcome."""
