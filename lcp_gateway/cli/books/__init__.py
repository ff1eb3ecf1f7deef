"""The commands that read the journal of purchases."""
