"""How often sign-in and registration may be tried: by the client's address, and in all."""

import math
from typing import Final

from lcp_gateway.accounts.limits.attempts import AttemptLimit, Attempts
from lcp_gateway.http.errors import ApiError

SIGN_INS: Final = AttemptLimit("sign_in", 10, 60.0)
SIGN_INS_IN_ALL: Final = AttemptLimit("sign_in_all", 100, 60.0)
REGISTRATIONS: Final = AttemptLimit("register", 5, 3_600.0)


class SignInLimits:
    """Counts attempts, successful or not."""

    def __init__(self, attempts: Attempts) -> None:
        self._attempts = attempts

    async def attempt(self, address: str | None) -> None:
        """Count an attempt to sign in or to use an invite.

        Raises:
            ApiError: 429, too many attempts.
        """
        wait_s = await self._attempts.take(address, SIGN_INS)
        if not wait_s:
            wait_s = await self._attempts.take_of_all(SIGN_INS_IN_ALL)
        if wait_s:
            raise _too_many("too many attempts to sign in", wait_s)

    async def open_account(self, address: str | None) -> None:
        """Count an account that is opened without an invite.

        Raises:
            ApiError: 429, too many of them.
        """
        if wait_s := await self._attempts.take(address, REGISTRATIONS):
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
