"""GET /api/events: what changes, as server-sent events: purchases, balances, top-ups, health and the catalog.

One task reads the books each second for all streams of this process, so that changes which other gateways and workers made
are told as well. The id of an event is a time of the database's rows: a client that comes back with the last one, to
whichever process, is told what it has missed.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

import orjson
from aiohttp import web

from lcp_gateway.__about__ import __version__
from lcp_gateway.accounts.callers import View, view_of
from lcp_gateway.accounts.documents import balance_document, topup_document
from lcp_gateway.accounts.feed import ChangeFeed, Changes, Watched
from lcp_gateway.accounts.models import Balance, Topup, TopupState
from lcp_gateway.clock import utc_now
from lcp_gateway.http.context import CONTEXT, RequestContext
from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.fields import rfc3339, unix_time
from lcp_gateway.http.gateway.api_limits import ApiLimits, caller_of
from lcp_gateway.http.gateway.purchases import KeyNames, purchase_document, shows
from lcp_gateway.http.queries import Query, QueryParameter
from lcp_gateway.http.server.connection import close_if_http10
from lcp_gateway.purchase.records import PurchaseRecord

EVENTS_QUERY: Final = (
    QueryParameter("after", "The id of the last event that was received; as the header Last-Event-ID."),
)
STREAMS_EACH: Final = 4
"""Streams of one session or key: a browser needs one for all of its tabs."""
STREAMS_OF_ACCOUNT: Final = 20
"""Streams of one account, or of one key of the operator, however many sessions and keys it has."""
STREAMS_IN_ALL: Final = 200
"""Streams of all customers, and as many of the operator, whom no customer can keep out."""

_LIMITS: Final = (STREAMS_EACH, STREAMS_OF_ACCOUNT, STREAMS_IN_ALL)
_POLL_S: Final = 1.0
_PING_S: Final = 15.0
_RETRY_MS: Final = 3_000
# A change may become visible so much later than its time says.
_LOOK_BACK: Final = timedelta(seconds=5)
_RESUMED: Final = timedelta(hours=24)
_MOST_RESUMED: Final = 1_000
# Of one second: a page of the newest is all that a person sees, and it is told to load the rest.
_MOST_TOLD: Final = 200
_CUT_EACH: Final = timedelta(seconds=10)
_MOST_WAITING: Final = 2_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The state of the gateway beside its books: why it could not buy now, and how many models and providers there are."""

    reasons: Sequence[str]
    models: int
    providers: int


@dataclass(slots=True, eq=False)
class EventStream:
    """One client: its view, and the events that it has not been sent yet. ``counted`` are the names that it counts under."""

    view: View
    counted: Sequence[Hashable]
    waiting: deque[bytes] = field(default_factory=deque)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    is_over: bool = False
    balance: Balance | None = None
    topups: dict[str, TopupState] | None = None
    surroundings: Surroundings | None = None
    cut_at: datetime | None = None

    @property
    def wallet_of(self) -> str | None:
        """The account whose balance and top-ups it shows; None where it shows those of none, or of all."""
        return self.view.account_id if self.view.key_id is None else None

    def tell(self, name: str, data: Mapping[str, object], at_micros: int) -> None:
        """Queue an event; the stream of a client that reads too slowly ends, and the client comes back with its last id."""
        if len(self.waiting) >= _MOST_WAITING:
            self.end()
            return
        self.waiting.append(b"id: %d\nevent: %b\ndata: %b\n\n" % (at_micros, name.encode(), orjson.dumps(data)))
        self.news.set()

    def end(self) -> None:
        """End it once all that waits was sent."""
        self.is_over = True
        self.news.set()


@dataclass(slots=True, eq=False)
class EventHub:
    """Reads what changed and hands it to the streams; it outlives a change of settings.

    ``feed`` is None without a journal. ``unavailable`` are errors of an unreachable database, which is asked again.
    """

    feed: ChangeFeed | None
    _: KW_ONLY
    key_names: KeyNames
    surroundings: Callable[[], Surroundings]
    is_ending: Callable[[], bool]
    unavailable: tuple[type[Exception], ...]
    now: Callable[[], datetime] = utc_now
    poll_s: float = _POLL_S
    _streams: set[EventStream] = field(init=False, default_factory=set)
    _open: Counter[Hashable] = field(init=False, default_factory=Counter)
    _wanted: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    _seen: dict[bytes, int] = field(init=False, default_factory=dict)

    async def run(self) -> None:
        """Read and tell, as long as there is a stream; the body of a background task."""
        while True:
            await self._wanted.wait()
            if self.is_ending():
                for stream in self._streams:
                    stream.end()
            with suppress(*self.unavailable):
                await self.poll()
            await asyncio.sleep(self.poll_s)

    def open(self, view: View, counted: Sequence[Hashable]) -> EventStream:
        """Add a stream; it counts under the names of its session or key, of its account, and of all callers of its group.

        Raises:
            ApiError: 429, there are too many.
        """
        if any(self._open[name] >= limit for name, limit in zip(counted, _LIMITS, strict=True)):
            raise ApiError(
                429,
                f"{STREAMS_EACH} streams of one session or key, {STREAMS_OF_ACCOUNT} of one account, and {STREAMS_IN_ALL} of "
                "all accounts can be open: close one, or ask for the lists every 15 s instead",
                code="too_many_streams",
                retry=True,
                retry_after_s=round(_PING_S),
                reason="api",
            )
        stream = EventStream(view, counted)
        self._streams.add(stream)
        self._open.update(counted)
        self._wanted.set()
        return stream

    def close(self, stream: EventStream) -> None:
        """Take a stream out."""
        self._streams.discard(stream)
        # Without the names that have none now: sessions are many.
        self._open -= Counter(stream.counted)
        if not self._streams:
            self._wanted.clear()
            self._seen.clear()

    async def begin(self, stream: EventStream, last_id: str | None) -> None:
        """Tell a new stream where it stands, and what it has missed since an id."""
        now = self.now()
        since = _time_of(last_id, now)
        is_missed = last_id is not None and since is None
        missed: Sequence[PurchaseRecord] = ()
        if since is not None and self.feed is not None:
            watched = _watched([stream], since - _LOOK_BACK, {})
            changes = await self.feed.changes(watched, limit=_MOST_RESUMED)
            is_missed = changes.is_cut
            missed = () if is_missed else changes.purchases
        names = await self._names(missed)
        present = None if self.feed is None else await self.feed.changes(_watched([stream], now, {}), limit=1)
        # The first event is this one, whatever happened meanwhile.
        later, stream.waiting = stream.waiting, deque()
        at = _micros(now if since is None or is_missed else since)
        stream.tell("hello", {"now": rfc3339(now), "missed": is_missed, "version": __version__}, at)
        _tell_purchases([stream], missed, names)
        stream.waiting.extend(later)
        self._tell_surroundings([stream], at)
        if present is not None:
            _tell_wallets([stream], present, at)

    async def poll(self) -> None:
        """Read once what changed, and tell it to every stream that may see it."""
        streams = [stream for stream in self._streams if not stream.is_over]
        now = self.now()
        at = _micros(now)
        self._tell_surroundings(streams, at)
        if self.feed is None or not streams:
            return
        begin = now - _LOOK_BACK
        changes = await self.feed.changes(_watched(streams, begin, self._seen), limit=_MOST_TOLD)
        oldest = _micros(begin)
        self._seen = {job_id: seen for job_id, seen in self._seen.items() if seen >= oldest}
        self._seen |= {record.job_id: _micros(record.updated_at) for record in changes.purchases}
        if changes.is_cut:
            for stream in streams:
                self._tell_cut(stream, now)
        _tell_purchases(streams, changes.purchases, await self._names(changes.purchases))
        _tell_wallets(streams, changes, at)

    async def _names(self, records: Sequence[PurchaseRecord]) -> Mapping[str, str]:
        key_ids = {record.key_id for record in records if record.key_id}
        return await self.key_names(key_ids) if key_ids else {}

    @staticmethod
    def _tell_cut(stream: EventStream, now: datetime) -> None:
        """Tell, once in a while, that more was bought than is told one by one."""
        if stream.cut_at is None or now - stream.cut_at >= _CUT_EACH:
            stream.cut_at = now
            stream.tell("hello", {"now": rfc3339(now), "missed": True, "version": __version__}, _micros(now))

    def _tell_surroundings(self, streams: Sequence[EventStream], at: int) -> None:
        found = self.surroundings()
        for stream in streams:
            before, stream.surroundings = stream.surroundings, found
            if before is None or before.reasons != found.reasons:
                reasons = list(found.reasons) if stream.view.is_whole else []
                status = "unavailable" if found.reasons else "ready"
                stream.tell("health", {"status": status, "reasons": reasons}, at)
            if before is None or (before.models, before.providers) != (found.models, found.providers):
                stream.tell("catalog", {"models": found.models, "providers": found.providers}, at)


class EventRoutes:
    """Serves the streams."""

    def __init__(self, hub: EventHub, *, api_limits: ApiLimits, ping_s: float = _PING_S) -> None:
        """``api_limits`` bounds the reads of the database with which a stream begins."""
        self._hub = hub
        self._api_limits = api_limits
        self._ping_s = ping_s

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Serve GET /api/events: a stream of server-sent events, as long as the caller is admitted."""
        query = Query(request, EVENTS_QUERY)
        context = request[CONTEXT]
        last_id = request.headers.get("Last-Event-ID") or query.text("after")
        stream = self._hub.open(view_of(context.caller), _counted(context, request.remote))
        try:
            # Before the head goes out: an error of the database can still become a response.
            async with self._api_limits.turn(request):
                await self._hub.begin(stream, last_id)
            response = web.StreamResponse(
                headers={"Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"}
            )
            close_if_http10(request, response)
            await response.prepare(request)
            await response.write(b"retry: %d\n\n" % _RETRY_MS)
            await self._send(stream, context, response)
        finally:
            self._hub.close(stream)
        return response

    async def _send(self, stream: EventStream, context: RequestContext, response: web.StreamResponse) -> None:
        while True:
            if stream.waiting:
                chunk = b"".join(stream.waiting)
                stream.waiting.clear()
                await self._write(response, chunk)
            if stream.is_over:
                break
            stream.news.clear()
            try:
                async with asyncio.timeout(self._ping_s):
                    await stream.news.wait()
            except TimeoutError:
                await self._write(response, b": ping\n\n")
            if not await context.still_admitted():
                break
        await response.write_eof()

    async def _write(self, response: web.StreamResponse, chunk: bytes) -> None:
        """Write a chunk.

        Raises:
            ConnectionResetError: the client does not read; its place is for another one.
        """
        try:
            async with asyncio.timeout(self._ping_s):
                await response.write(chunk)
        except TimeoutError:
            raise ConnectionResetError("the client does not read its events") from None


def _tell_purchases(
    streams: Sequence[EventStream], records: Sequence[PurchaseRecord], names: Mapping[str, str]
) -> None:
    for record in records:
        at = _micros(record.updated_at)
        for stream in streams:
            if shows(stream.view, record):
                stream.tell("purchase", purchase_document(record, stream.view, names), at)


def _tell_wallets(streams: Sequence[EventStream], changes: Changes, at: int) -> None:
    for stream in streams:
        account_id = stream.wallet_of
        if account_id is not None:
            balance = changes.balances.get(account_id, stream.balance)
            if balance is not None and balance != stream.balance:
                stream.balance = balance
                stream.tell("wallet", balance_document(balance), at)
        if account_id is None and not stream.view.is_whole:
            continue
        own = [topup for topup in changes.topups if account_id in {None, topup.account_id}]
        before = stream.topups
        for topup in own:
            # Those that are open when a stream begins are in the list that its page loads.
            if before is not None and before.get(topup.id) is not topup.state:
                stream.tell("topup", _topup(topup, stream.view), at)
        stream.topups = {topup.id: topup.state for topup in own if topup.state is TopupState.OPEN}


def _watched(streams: Sequence[EventStream], since: datetime, seen: Mapping[bytes, int]) -> Watched:
    is_whole = any(stream.view.is_whole for stream in streams)
    return Watched(
        since,
        is_whole=is_whole,
        account_ids=frozenset(filter(None, (stream.wallet_of for stream in streams))),
        key_ids=frozenset(filter(None, (stream.view.key_id for stream in streams))),
        seen=seen,
        open_topups=frozenset(topup_id for stream in streams for topup_id in stream.topups or ()),
    )


def _topup(topup: Topup, view: View) -> dict[str, object]:
    document = topup_document(topup, unix_time)
    del document["payment_request"]
    return {"object": "lcp.topup", **document, **({"account_id": topup.account_id} if view.is_whole else {})}


def _counted(context: RequestContext, remote: str | None) -> Sequence[Hashable]:
    """Return the names that a stream counts under: its session, else its key or address; its account; and its group."""
    caller = caller_of(context.caller, remote)
    own = (caller, context.key_id) if context.session is None else context.session.token_hash
    return own, caller, caller.group


def _micros(at: datetime) -> int:
    return (at - _EPOCH) // _MICROSECOND


def _time_of(last_id: str | None, now: datetime) -> datetime | None:
    """Return the time of an event's id; None where there is none, and where it is too old, or of no clock of ours."""
    if last_id is None or not last_id.isascii() or not last_id.isdigit() or len(last_id) > len(str(_micros(now))):
        return None
    at = _EPOCH + _MICROSECOND * int(last_id)
    return at if now - _RESUMED <= at <= now + _LOOK_BACK else None
