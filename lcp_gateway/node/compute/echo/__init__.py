"""A backend that says what it was told: deterministic, free, and in the exact shapes that OpenAI clients expect."""
