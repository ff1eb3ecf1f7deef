"""Units that several rooms count in, each said once."""

from typing import Final

MSAT_PER_SAT: Final = 1_000
MSAT_PER_BTC: Final = 100_000_000_000
PPM: Final = 1_000_000
"""Parts per million: the whole."""
BYTES_PER_TOKEN: Final = 4
"""Bytes of text that usually make a token, where no tokenizer is at hand."""
