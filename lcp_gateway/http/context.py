"""The context of one HTTP request: what headers, metrics, spans and the access log are made from."""

import re
import secrets
import time
from dataclasses import dataclass, field

from aiohttp import web

from lcp_gateway.accounts.callers import Caller, KeyRules
from lcp_gateway.purchase.journal import EarlierPurchase
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.result_buffer import ResultBuffer
from lcp_gateway.purchase.states import Verdict

SERVER = "lcp-gateway"
UNAUTHENTICATED = Caller("", None, KeyRules(scopes=frozenset()))
"""Whoever has not been let in yet."""
_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


@dataclass(slots=True)
class RequestContext:
    """A request and what came of it. Times are readings of a monotonic clock, in seconds.

    ``headers`` go out with the answer, whatever it is. ``client`` is where it comes from, empty for this very machine.
    ``earlier`` is the purchase that it repeats, where that is known to the journal alone.
    ``may_read_details`` is false for a caller that a web page may have sent, of an answer that everyone gets.
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
    client: str = ""
    may_read_details: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    answer: ResultBuffer | None = None
    earlier: EarlierPurchase | None = None
    joined: bool = False
    problem: str = ""

    @property
    def key_id(self) -> str:
        """The name of the credential, which is not the credential; empty where there is none."""
        return self.caller.key_id

    @property
    def purchase(self) -> Purchase | None:
        """What was bought for it, or joined."""
        return None if self.answer is None else self.answer.purchase

    @property
    def verdict(self) -> Verdict:
        """What can be said of the money now."""
        return Verdict.NONE if self.answer is None else self.answer.verdict

    def elapsed_s(self) -> float:
        """Time since the request's head was read."""
        return time.monotonic() - self.started


CONTEXT = web.RequestKey("context", RequestContext)


def request_id_of(claimed: str | None) -> str:
    """Give the client's id if it is sane (1 to 128 harmless characters), else one of our own."""
    if claimed and _SANE_ID.fullmatch(claimed):
        return claimed
    return f"req_{secrets.token_hex(16)}"
