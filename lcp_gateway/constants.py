"""Units and prefixes that several rooms share, each said once."""

from typing import Final

MSAT_PER_SAT: Final = 1_000
PPM: Final = 1_000_000
"""Parts per million in the whole."""

BYTES_PER_TOKEN: Final = 4
"""Bytes of text that usually make a token, for estimates without a tokenizer."""

NODE_PREFIX: Final = "node:"
"""A virtual node's provider id is this and its name; a Lightning peer's is its public key, 66 hex digits."""
