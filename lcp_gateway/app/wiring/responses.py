"""Stored responses, chats and background responses as the settings say."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from structlog.typing import FilteringBoundLogger

from lcp_gateway.app import workers
from lcp_gateway.app.background_tasks import BackgroundTask
from lcp_gateway.app.wiring.journal import JournalParts
from lcp_gateway.app.wiring.routing import RoutingParts
from lcp_gateway.app.wiring.shared_results import SharedResults
from lcp_gateway.config import Settings
from lcp_gateway.http.gateway.api_limits import ApiCaller, ApiLimits, Group
from lcp_gateway.http.openai.admission import Admission, JobsInFlight
from lcp_gateway.http.openai.background import BackgroundResponses
from lcp_gateway.http.openai.chats import ChatRoutes
from lcp_gateway.http.openai.history import History
from lcp_gateway.http.openai.input_tokens import InputTokenRoutes
from lcp_gateway.http.openai.responses import ResponseRoutes
from lcp_gateway.purchase.service import PurchaseService
from lcp_gateway.responses.recording import Recorder
from lcp_gateway.responses.store import ResponseStore, StoreLimits
from lcp_gateway.responses.stored_items import MemoryItems, StoredItems
from lcp_gateway.responses.token_estimate import estimate_input_tokens
from lcp_gateway.store.background_responses import BackgroundRows
from lcp_gateway.telemetry.metrics import Metrics
from lcp_gateway.upstreams.openai.input_tokens import TokenCounter

if TYPE_CHECKING:
    from lcp_gateway.accounts.shared.events import RedisEvents
    from lcp_gateway.app.wiring.shared_items import SharedItems

_CANCEL = b"cancel"


@dataclass(frozen=True, slots=True)
class StoredState:
    """The store, the recorder of answers and the background responses; all outlive a change of settings.

    ``items`` are those of ``store``, or of all gateways and workers where they share them in ``shared``. ``events`` is their
    channel about background jobs.
    """

    store: ResponseStore
    items: StoredItems
    recorder: Recorder
    background: BackgroundResponses
    shared: "SharedItems | None" = None
    events: "RedisEvents | None" = None

    def use(self, limits: StoreLimits) -> None:
        """Apply other limits."""
        self.store.use(limits)
        if self.shared is not None:
            self.shared.use(limits)

    def tasks(self) -> Iterable[BackgroundTask]:
        """Yield the tasks that have to run beside the requests."""
        yield BackgroundTask("purge", partial(workers.purge, self.store, self.shared))
        if self.events is not None:
            yield BackgroundTask("shared", partial(self.events.run, {_CANCEL: self._cancel}))

    def _cancel(self, content: bytes) -> None:
        owner, _, response_id = content.decode().partition("\n")
        self.background.cancel_here(owner, response_id)


@dataclass(frozen=True, slots=True)
class ResponsesParts:
    """The routes of stored objects by one configuration, and the history that expands requests."""

    history: History
    input_tokens: InputTokenRoutes
    responses: ResponseRoutes
    chats: ChatRoutes


def store_limits(settings: Settings) -> StoreLimits:
    """Return the limits of the store."""
    return StoreLimits(settings.max_stored_items, settings.max_stored_bytes, settings.stored_for_s)


def open_stored_state(
    settings: Settings,
    *,
    service: PurchaseService,
    journal: JournalParts,
    jobs: JobsInFlight,
    metrics: Metrics,
    api_limits: ApiLimits,
    sharing: SharedResults,
    log: FilteringBoundLogger,
) -> StoredState:
    """Make the store, its recorder and its background responses."""
    store: ResponseStore = ResponseStore(
        store_limits(settings),
        clock=time.monotonic,
        on_change=metrics.stored,
        on_removed=lambda why: metrics.stored_removed(why.value),
    )
    shared, events = sharing.items(store_limits(settings)), sharing.job_events()
    recorder = Recorder(store, now=time.time, on_lost=metrics.not_stored, shared=shared)

    def cancel_elsewhere(owner: str, response_id: str) -> None:
        if events is not None:
            events.publish(_CANCEL, f"{owner}\n{response_id}".encode())

    background = BackgroundResponses(
        service=service,
        store=store,
        recorder=recorder,
        repository=BackgroundRows(journal.database) if journal.database is not None else None,
        is_ending=lambda: jobs.draining,
        on_change=metrics.background_jobs,
        place=lambda owner: api_limits.place(ApiCaller(Group.CUSTOMERS, owner)),
        log=log,
        shared=shared,
        cancel_elsewhere=cancel_elsewhere,
    )
    return StoredState(store, MemoryItems(store) if shared is None else shared, recorder, background, shared, events)


def responses_parts(
    settings: Settings,
    stored: StoredState,
    *,
    routing: RoutingParts,
    admission: Admission,
    counter: TokenCounter,
    relay_limit_s: float,
) -> ResponsesParts:
    """Wire the routes."""
    registry, offers = routing.registry, routing.selector.offers

    def context_tokens(model: str) -> int:
        traits = offers().traits.get(registry.resolve(model))
        return traits.context_length if traits is not None else 0

    history = History(
        stored.items,
        stored.recorder,
        max_body_bytes=settings.max_body_bytes,
        context_tokens=context_tokens,
        estimate=estimate_input_tokens,
    )
    return ResponsesParts(
        history=history,
        input_tokens=InputTokenRoutes(
            ask=counter.count_at,
            offers=offers,
            resolve=registry.resolve,
            admission=admission,
            expand=history.expand,
            estimate=estimate_input_tokens,
            default_model=settings.default_model,
            read_timeout_s=settings.request_read_timeout_s,
            ask_timeout_s=settings.timeout_quote_s,
        ),
        responses=ResponseRoutes(
            stored.items, stored.background, heartbeat_s=settings.heartbeat_s, relay_limit_s=relay_limit_s
        ),
        chats=ChatRoutes(stored.items, read_timeout_s=settings.request_read_timeout_s),
    )
