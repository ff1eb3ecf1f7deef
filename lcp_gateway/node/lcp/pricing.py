"""What a provider asks for a job: its tokens as they can be known before it runs, and a surcharge while it is busy."""

from dataclasses import dataclass
from typing import Final

from lcp_gateway.constants import BYTES_PER_TOKEN

_MTOK: Final = 1_000_000
_ONE_BPS: Final = 10_000
_DEFAULT_MAX_BPS: Final = 30_000
_U64_MAX: Final = 0xFFFF_FFFF_FFFF_FFFF


class PriceTooHigh(ValueError):
    """A price that does not fit the 64 bits of its field."""


@dataclass(frozen=True, slots=True)
class TokenPrice:
    """The price of a million tokens, in msat. ``input_msat`` is asked for all of the input: what is cached is not known.

    ``job_msat`` is asked for each job besides; lcpd-grpcd has no such part.
    """

    input_msat: int
    output_msat: int
    job_msat: int = 0


@dataclass(frozen=True, slots=True)
class Surge:
    """A surcharge of ``per_job_bps`` basis points for each job in flight above ``threshold``; 0 is none.

    ``max_multiplier_bps`` bounds the whole factor, of which 10,000 is 1; 0 stands for 30,000.
    """

    threshold: int = 0
    per_job_bps: int = 0
    max_multiplier_bps: int = 0

    def __post_init__(self) -> None:
        if min(self.threshold, self.per_job_bps, self.max_multiplier_bps) < 0:
            raise ValueError("surge: a number is negative")
        if self.per_job_bps and 0 < self.max_multiplier_bps < _ONE_BPS:
            raise ValueError(
                f"surge: max_multiplier_bps is {self.max_multiplier_bps}: it must be 0 or at least {_ONE_BPS}"
            )

    def multiplier_bps(self, inflight: int) -> int:
        """Return the factor for a job that comes while ``inflight`` others are quoted or run, itself not counted."""
        if not self.per_job_bps:
            return _ONE_BPS
        above = max(0, inflight - self.threshold)
        return min(_ONE_BPS + self.per_job_bps * above, self.max_multiplier_bps or _DEFAULT_MAX_BPS)


NO_SURGE: Final = Surge()


def price_msat(
    price: TokenPrice, *, request_bytes: int, output_tokens: int, inflight: int = 0, surge: Surge = NO_SURGE
) -> int:
    """Return the price of a job: its input at four bytes a token, and all of the output that it may have.

    Each step rounds up: first the price of the tokens, then the surcharge.

    Raises:
        PriceTooHigh: it does not fit 64 bits.
    """
    input_tokens = -(-request_bytes // BYTES_PER_TOKEN)
    tokens = -(-(input_tokens * price.input_msat + output_tokens * price.output_msat) // _MTOK)
    base = price.job_msat + tokens
    total = -(-base * surge.multiplier_bps(inflight) // _ONE_BPS)
    if total > _U64_MAX:
        raise PriceTooHigh("the price does not fit 64 bits")
    return total
