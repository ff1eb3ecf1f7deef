"""Customers of a gateway that is killed again and again: their orders, how they read, and their results."""

import json
import random
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from itertools import count

from tests.support.wire import CHAT, RESPONSES, Answer, Wire, document, request_bytes
from tests.system.selling.seller import Office, bearer

# Of the last two nothing may ever be taken for a whole answer.
MODELS = {
    "echo-1": 30,
    "echo-mini": 12,
    "echo-slow": 14,
    "fault/big-result": 14,
    "fault/execute-code-unavailable": 6,
    "fault/result-failed": 3,
    "fault/stream-cut": 6,
    "fault/wrong-hash": 6,
}
NEVER_WHOLE = {"fault/execute-code-unavailable", "fault/result-failed", "fault/stream-cut", "fault/wrong-hash"}
WITH_KEY = 0.5
REPEATED_AFTER_SUCCESS = 0.2
WITH_REVOKED_KEY = 0.1
SLOW_BLOCK = 16_384
SLOW_WINDOW = 4_096
ATTEMPTS = 6
TIMEOUT_S = 120.0


class Left(Exception):
    """The customer closed the connection before the answer's end."""


class PacedWire(Wire):
    """A connection that reads at a customer's pace, and may be closed after some bytes."""

    def __init__(self, port: int, pace: "Pace") -> None:
        super().__init__(port, TIMEOUT_S)
        self._pace = pace
        self._taken = 0
        if pace.pause_s:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_WINDOW)

    def _more(self) -> bool:
        pace = self._pace
        if pace.leaves_after is not None and self._taken >= pace.leaves_after:
            raise Left
        if pace.pause_s:
            time.sleep(pace.pause_s)
        try:
            data = self.socket.recv(SLOW_BLOCK if pace.pause_s else 65_536)
        except ConnectionResetError:
            self.was_reset = True
            data = b""
        self._taken += len(data)
        self._held += data
        return bool(data)


@dataclass(frozen=True)
class Pace:
    """How an answer is read: with a pause before each block, and up to how many bytes before the customer leaves."""

    pause_s: float = 0.0
    leaves_after: int | None = None


@dataclass
class Attempt:
    """One request of an order and its result. ``complete`` says that the whole answer with its end mark came."""

    status: int = 0
    job_id: str = ""
    verdict: str = ""
    code: str = ""
    complete: bool = False
    left: bool = False

    @property
    def is_answered(self) -> bool:
        return self.complete or (self.status >= 400 and bool(self.verdict or self.code))


@dataclass
class Order:
    """One purchase that a customer wants. Its body is unique, so that its purchases are found by the body's hash."""

    account_id: str
    key: str
    path: str
    model: str
    stream: bool
    body: bytes
    repeat_key: str | None
    pace: Pace
    with_revoked_key: bool
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def body_sha256(self) -> str:
        return sha256(self.body).hexdigest()

    @property
    def headers(self) -> dict[str, str]:
        own = {"Idempotency-Key": self.repeat_key} if self.repeat_key else {}
        return {**bearer(self.key), **own}


def is_complete(order: Order, answer: Answer) -> bool:
    """Whether an SDK would hand this to its user as a whole answer."""
    if answer.status != 200:
        return False
    if not order.stream:
        return answer.whole and answer.json.get("error") is None
    if order.path == CHAT:
        return b"data: [DONE]\n\n" in answer.body
    ends = (b"event: response.completed\n", b"event: response.incomplete\n")
    begins = max(answer.body.rfind(end) for end in ends)
    return begins >= 0 and b"\n\n" in answer.body[begins:]


class Accounts:
    """The accounts, their keys, and when each revoked key's revocation was confirmed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.ids: list[str] = []
        self._lasting: dict[str, str] = {}
        self._revocable: dict[str, list[dict]] = defaultdict(list)
        self._revoked: dict[str, list[str]] = defaultdict(list)
        self.revoked_at: dict[str, datetime] = {}

    def open(self, office: Office, number: int, filled_msat: int) -> None:
        for _ in range(number):
            account_id = office.account(filled_msat)
            self.ids.append(account_id)
            self._lasting[account_id] = office.key(account_id)["key"]

    def permanent_key(self, account_id: str) -> str:
        return self._lasting[account_id]

    def any_key(self, dice: random.Random, account_id: str) -> tuple[str, bool]:
        """Return a key, and whether it is one that was revoked."""
        with self._lock:
            revoked = self._revoked[account_id]
            if revoked and dice.random() < WITH_REVOKED_KEY:
                return revoked[-1], True
            fresh = self._revocable[account_id]
            return (fresh[-1]["key"] if fresh else self._lasting[account_id]), False

    def replace_key(self, office: Office, dice: random.Random) -> None:
        """Make a new key for an account and revoke the one before it."""
        account_id = dice.choice(self.ids)
        made = office.key(account_id)
        with self._lock:
            self._revocable[account_id].append(made)
            old = self._revocable[account_id][:-1]
        for key in old:
            if office.delete(f"keys/{key['id']}").status == 200:
                at = datetime.now(UTC)
                with self._lock:
                    self.revoked_at[key["id"]] = at
                    self._revocable[account_id].remove(key)
                    self._revoked[account_id].append(key["key"])


@dataclass
class Load:
    """Customers that buy without a pause from whichever gateway runs, and an administrator that revokes keys."""

    accounts: Accounts
    port: int = 0
    orders: list[Order] = field(default_factory=list)
    cut_off: int = 0
    up: threading.Event = field(default_factory=threading.Event)
    winding_up: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    idle: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _numbers: Iterator[int] = field(default_factory=count)

    def buy(self, dice: random.Random) -> None:
        """Be a customer until the load is over; with ``winding_up`` only requests that were cut off are repeated."""
        unfinished: list[Order] = []
        while not self.over.is_set():
            if not self.up.wait(0.1):
                continue
            if unfinished:
                order = unfinished.pop()
            elif self.winding_up.is_set():
                break
            else:
                order = self._new_order(dice)
                self.orders.append(order)
            attempt = self._ask(order)
            order.attempts.append(attempt)
            if order.repeat_key is None or len(order.attempts) >= ATTEMPTS:
                continue
            if not attempt.is_answered or dice.random() < REPEATED_AFTER_SUCCESS:
                unfinished.append(order)
        self.idle.release()

    def administrate(self, dice: random.Random) -> None:
        """Replace keys until the load is over."""
        while not self.over.wait(dice.uniform(0.1, 0.8)):
            if self.up.is_set() and not self.winding_up.is_set():
                with suppress(OSError, EOFError, ValueError, LookupError, AssertionError):
                    self.accounts.replace_key(Office(self.port), dice)

    def _new_order(self, dice: random.Random) -> Order:
        account_id = dice.choice(self.accounts.ids)
        path = dice.choice((CHAT, RESPONSES))
        model = dice.choices(list(MODELS), list(MODELS.values()))[0]
        stream = dice.random() < 0.6
        limit = {"max_tokens" if path == CHAT else "max_output_tokens": dice.randint(4, 24)}
        text = f"order {next(self._numbers)} " + "word " * dice.randint(1, 20)
        body = json.dumps(document(path, model, text, stream=stream, **limit)).encode()
        repeat_key = f"order-{text.split()[1]}" if dice.random() < WITH_KEY else None
        key, revoked = self.accounts.permanent_key(account_id), False
        if repeat_key is None:
            key, revoked = self.accounts.any_key(dice, account_id)
        pace = Pace()
        if dice.random() < 0.45:
            pace = Pace(pause_s=dice.choice((0.002, 0.01, 0.03)))
        elif dice.random() < 0.3:
            pace = Pace(leaves_after=dice.choice((0, 1, 900, 2_000)))
        return Order(account_id, key, path, model, stream, body, repeat_key, pace, revoked)

    def _ask(self, order: Order) -> Attempt:
        attempt = Attempt()
        try:
            connection = PacedWire(self.port, order.pace)
        except OSError:
            self.cut_off += 1
            time.sleep(0.02)
            return attempt
        try:
            connection.send(request_bytes("POST", order.path, order.body, order.headers))
            answer = connection.answer()
        except Left:
            attempt.left = True
            return attempt
        except (OSError, EOFError, ValueError, IndexError):
            self.cut_off += 1
            return attempt
        finally:
            connection.close()
        attempt.status = answer.status
        attempt.job_id = answer.headers.get("x-lcp-job-id", "")
        attempt.verdict = answer.headers.get("x-lcp-payment", "")
        attempt.complete = is_complete(order, answer)
        if answer.status >= 400 and answer.whole:
            attempt.code = answer.error["code"] or ""
        elif not attempt.complete:
            self.cut_off += 1
        return attempt


@contextmanager
def customers(accounts: Accounts, number: int, dice: random.Random) -> Iterator[Load]:
    """Run so many customers and one administrator."""
    load = Load(accounts)
    work = [load.administrate, *[load.buy] * number]
    threads = [threading.Thread(target=it, args=(random.Random(dice.random()),), daemon=True) for it in work]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        load.over.set()
        for thread in threads:
            thread.join(TIMEOUT_S + 5)
