"""Who offers what, and who gets a task. Pure: snapshots in, decision out."""
