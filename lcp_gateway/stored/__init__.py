"""What clients come back for: stored responses and chat completions, chains of them, and jobs in the background."""
