"""Random ids, which tell what they are of."""

import secrets


def account_id() -> str:
    """Give the id of a new account."""
    return f"acct_{secrets.token_hex(12)}"


def key_id() -> str:
    """Give the id of a new key, which is not the key."""
    return f"key_{secrets.token_hex(8)}"


def topup_id() -> str:
    """Give the id of a new top-up."""
    return f"top_{secrets.token_hex(12)}"


def adjustment_id() -> str:
    """Give the id of a new adjustment."""
    return f"adj_{secrets.token_hex(12)}"
