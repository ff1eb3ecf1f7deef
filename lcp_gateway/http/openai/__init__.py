"""OpenAI's routes: what a client of OpenAI's API calls."""
