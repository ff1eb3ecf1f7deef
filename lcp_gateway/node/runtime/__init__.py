"""The node around the machines of ``lcp/``: it routes messages to jobs, carries out effects, and owns timers and tasks."""
