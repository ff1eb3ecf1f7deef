"""Virtual nodes: OpenAI-compatible HTTP servers, bought from like a peer."""
