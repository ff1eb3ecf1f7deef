"""Ids that the gateway itself gives, where a client could not work without one. Nobody can guess them."""

import secrets

BACKGROUND_PREFIX = "resp_bg_"
"""What the ids of background jobs begin with, whose clients are answered before any provider is."""


def response_id() -> str:
    """Give an id for a response whose provider gave none."""
    return f"resp_{secrets.token_hex(24)}"


def background_id() -> str:
    """Give an id for a response that is worked on in the background."""
    return f"{BACKGROUND_PREFIX}{secrets.token_hex(24)}"


def chat_id() -> str:
    """Give an id for a chat completion whose provider gave none."""
    return f"chatcmpl-{secrets.token_hex(24)}"
