"""Local models: a process that runs `llama-server` for each model that is wanted, behind one OpenAI-compatible server."""
