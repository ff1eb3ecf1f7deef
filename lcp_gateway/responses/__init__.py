"""Stored responses and chat completions, in memory only."""
