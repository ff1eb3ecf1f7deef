"""What is said of rates: how much a minute, whose limit it is, what was allowed, and what was refused.

Apart from what counts, so that only those who count have to load that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from lcp_gateway.purchase.errors import Refused


class RateKind(StrEnum):
    """What is counted."""

    REQUESTS = "requests"
    TOKENS = "tokens"


class LimitedBy(StrEnum):
    """Whose limit it is."""

    GATEWAY = "gateway"
    ACCOUNT = "account"
    KEY = "key"


_WHOSE: Mapping[LimitedBy, str] = {
    LimitedBy.GATEWAY: "this gateway",
    LimitedBy.ACCOUNT: "this account",
    LimitedBy.KEY: "this key",
}


@dataclass(frozen=True, slots=True)
class Rates:
    """How much a minute; 0 means no limit."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0


NO_LIMITS: Final = Rates()


class RateLimited(Refused):
    """A limit is reached. Nothing was counted, and nothing asked of anybody.

    ``retry_after_s`` is when the request fits, if no other comes before; None when it is larger than the limit and never
    will. ``headers`` are OpenAI's ``x-ratelimit-…``.
    """

    code = "rate_limit_exceeded"

    def __init__(
        self,
        kind: RateKind,
        limited_by: LimitedBy,
        limit: int,
        *,
        retry_after_s: float | None,
        headers: Mapping[str, str],
    ) -> None:
        what = f"{limit} {kind} a minute for {_WHOSE[limited_by]}"
        if retry_after_s is None:
            message = f"the request is larger than the limit of {what}; nothing was paid"
        else:
            message = f"the limit of {what} is reached; nothing was paid"
        super().__init__(message)
        self.may_pass_later = retry_after_s is not None
        self.kind = kind
        self.limited_by = limited_by
        self.limit = limit
        self.retry_after_s = retry_after_s
        self.headers = headers


@dataclass(frozen=True, slots=True)
class Allowance:
    """A request that may go on: what was counted for it, and the headers of its answer."""

    tokens: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    counted: Sequence[Any] = field(default=(), repr=False)
