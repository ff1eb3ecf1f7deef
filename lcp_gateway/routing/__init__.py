"""The choice of a provider and a model for a task. Pure: snapshots in, decision out."""
