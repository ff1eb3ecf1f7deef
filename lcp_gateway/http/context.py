"""The context of one HTTP request, from which headers, metrics, spans and the access log are made."""

import os
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web

from lcp_gateway.accounts.callers import Caller, KeyRules
from lcp_gateway.accounts.sessions import Session
from lcp_gateway.purchase.journal import EarlierPurchase
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.result_buffer import ResultBuffer
from lcp_gateway.purchase.states import Verdict

SERVER = "lcp-gateway"
UNAUTHENTICATED = Caller("", None, KeyRules(scopes=frozenset()))
"""The caller of a request that is not authenticated yet."""
_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


@dataclass(slots=True)
class RequestContext:
    """One request and its result so far. Times are readings of a monotonic clock, in seconds.

    ``headers`` go out with any response. ``client`` is the client's address, empty for this machine. ``earlier`` is the
    purchase that the request repeats, where only the journal knows it. ``may_read_details`` is false for a request that a
    web page may have caused, on a route that needs no key. ``is_shareable`` is false for a response that no page of another
    origin may read, whatever ``cors_origins`` says. ``session`` is the console's, where its cookie was read; ``recheck`` returns
    whether the caller would be admitted again.
    """

    request_id: str
    started: float = field(default_factory=time.monotonic)
    endpoint: str = "unmatched"
    operation: str = ""
    model: str = ""
    stream: bool = False
    request_bytes: int = 0
    result_bytes: int = 0
    counted_bytes: int = 0
    caller: Caller = UNAUTHENTICATED
    session: Session | None = None
    recheck: Callable[[], Awaitable[bool]] | None = None
    client: str = ""
    may_read_details: bool = True
    is_shareable: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    answer: ResultBuffer | None = None
    earlier: EarlierPurchase | None = None
    joined: bool = False
    problem: str = ""

    @property
    def key_id(self) -> str:
        """The name of the credential, never the credential; empty where there is none."""
        return self.caller.key_id

    @property
    def purchase(self) -> Purchase | None:
        """The purchase made for it, or joined."""
        return None if self.answer is None else self.answer.purchase

    @property
    def verdict(self) -> Verdict:
        """The payment's verdict so far."""
        return Verdict.NONE if self.answer is None else self.answer.verdict

    async def still_admitted(self) -> bool:
        """Return whether the caller would be admitted again: for a response that takes long, as a stream of events.

        False once the key was revoked or its rules have changed, once the session is over, and while that cannot be checked.
        """
        return self.recheck is None or await self.recheck()

    def elapsed_s(self) -> float:
        """Return the seconds since the request's head was read."""
        return time.monotonic() - self.started


CONTEXT = web.RequestKey("context", RequestContext)


def request_id_of(claimed: str | None) -> str:
    """Return the client's id if it has 1 to 128 harmless characters, else a new one."""
    if claimed and _SANE_ID.fullmatch(claimed):
        return claimed
    return f"req_{os.urandom(16).hex()}"
