"""How often sign-in and registration may be tried: by the client's address, and in all."""

import math
import time
from collections.abc import Callable
from typing import Final

from lcp_gateway.accounts.limits.addresses import AddressLimits
from lcp_gateway.http.errors import ApiError

SIGN_INS_A_MINUTE: Final = 10
SIGN_INS_A_MINUTE_IN_ALL: Final = 100
REGISTRATIONS_AN_HOUR: Final = 5

_IN_ALL = "all clients together"
_S_PER_HOUR = 3_600.0


class SignInLimits:
    """Counts attempts, successful or not, of this process; a key has 256 bits, so that several processes do no harm."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._attempts = AddressLimits(clock=clock)
        self._opened = AddressLimits(period_s=_S_PER_HOUR, clock=clock)

    def attempt(self, address: str | None) -> None:
        """Count an attempt to sign in or to use an invite.

        Raises:
            ApiError: 429, too many attempts.
        """
        wait_s = self._attempts.take(address, SIGN_INS_A_MINUTE)
        if not wait_s:
            wait_s = self._attempts.take(_IN_ALL, SIGN_INS_A_MINUTE_IN_ALL)
        if wait_s:
            raise _too_many("too many attempts to sign in", wait_s)

    def open_account(self, address: str | None) -> None:
        """Count an account that is opened without an invite.

        Raises:
            ApiError: 429, too many of them.
        """
        if wait_s := self._opened.take(address, REGISTRATIONS_AN_HOUR):
            raise _too_many("too many accounts were opened from this address", wait_s)


def _too_many(problem: str, wait_s: float) -> ApiError:
    seconds = max(1, math.ceil(wait_s))
    return ApiError(
        429,
        f"{problem}: try again in {seconds} s",
        code="rate_limit_exceeded",
        retry=True,
        retry_after_s=seconds,
        reason="sign_in",
    )
