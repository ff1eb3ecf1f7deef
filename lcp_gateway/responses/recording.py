"""Records answers in the store, once they have come whole and without an error."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from lcp_gateway.adapters.sse import is_event_stream, is_uncompressed
from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.purchase.result_buffer import ResultBuffer, ResultGone
from lcp_gateway.responses.documents import find_id
from lcp_gateway.responses.history import input_segment, messages_segment
from lcp_gateway.responses.items import Item, ItemKind, metadata_text
from lcp_gateway.responses.store import ResponseStore
from lcp_gateway.responses.stored_items import StoredItems, StoreUnavailable

_KINDS = {TaskKind.RESPONSES: ItemKind.RESPONSE, TaskKind.CHAT_COMPLETIONS: ItemKind.CHAT}


@dataclass(frozen=True, slots=True)
class RecordingPlan:
    """How an answer is recorded. ``body`` is the request as the client sent it, ``earlier`` the turns before it.

    ``given_id`` is the id of a result that has none, ``fixed_id`` replaces any. ``opening`` is the event that the client got
    before those of the provider.
    """

    owner: str
    kind: TaskKind
    model: str
    body: bytes = field(repr=False)
    earlier: tuple[bytes, ...] = field(default=(), repr=False)
    given_id: str = ""
    fixed_id: str = ""
    opening: bytes = field(default=b"", repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)
    changes: Mapping[str, object] = field(default_factory=dict, repr=False)
    headers: Callable[[ResultBuffer], Mapping[str, str]] = lambda _answer: {}

    def inputs(self) -> tuple[bytes, ...]:
        """Return the segments of the conversation before the answer."""
        of_chat = self.kind is TaskKind.CHAT_COMPLETIONS
        segment = messages_segment(self.body) if of_chat else input_segment(self.body)
        return (*self.earlier, segment) if segment else self.earlier


class Recorder:
    """Puts answers into the store."""

    def __init__(
        self,
        store: ResponseStore,
        *,
        now: Callable[[], float],
        on_lost: Callable[[], None] = lambda: None,
        shared: StoredItems | None = None,
    ) -> None:
        """``now`` returns seconds since 1970; ``on_lost`` is called for an answer that could not be stored.

        ``shared`` is the store of several processes, used in place of this process's own.
        """
        self._store = store
        self._shared = shared
        self._now = now
        self._on_lost = on_lost

    def record(self, answer: ResultBuffer, plan: RecordingPlan) -> None:
        """Record an answer once it has come whole. Takes references to its bytes: no stream waits for it."""
        if self._shared is None:
            answer.when_ended(partial(self._ended, plan))
        else:
            # Before its client has the end: it may ask another process for it the next moment.
            answer.before_end = partial(self._publish, self._shared, plan)

    def item(self, answer: ResultBuffer, plan: RecordingPlan) -> Item | None:
        """Return the item for an answer that has come whole; None where its bytes are gone, or it has no id."""
        head, purchase = answer.head, answer.purchase
        if head is None or not is_uncompressed(head.content_encoding):
            return None
        try:
            blocks = answer.all_blocks()
        except ResultGone:
            return None
        stream = is_event_stream(head.content_type)
        try:
            own_id = find_id(blocks, stream)
        except ValueError:
            own_id = None
        item_id = plan.fixed_id or own_id or answer.given_id or plan.given_id
        if not item_id:
            return None
        changes = dict(plan.changes)
        if item_id != own_id:
            changes["id"] = item_id
        return Item(
            kind=_KINDS[plan.kind],
            id=item_id,
            created_at=int(self._now()),
            model=plan.model,
            bought_model=purchase.order.task.model if purchase is not None else plan.model,
            # One string, since the overhead of many small ones would be larger than their bytes.
            blocks=(b"".join(blocks),),
            stream=stream,
            opening=plan.opening if stream else b"",
            inputs=plan.inputs(),
            changes=changes,
            attached=metadata_text(plan.metadata),
            background=bool(plan.fixed_id),
            headers=plan.headers(answer),
        )

    async def _publish(self, shared: StoredItems, plan: RecordingPlan, answer: ResultBuffer) -> None:
        if answer.is_copy:
            # The process that bought it has stored it, and its client may have deleted it since.
            return
        item = self.item(answer, plan)
        try:
            is_stored = item is not None and await shared.put(plan.owner, item)
        except StoreUnavailable:
            is_stored = False
        if not is_stored:
            self._on_lost()

    def _ended(self, plan: RecordingPlan, answer: ResultBuffer) -> None:
        if answer.error is not None:
            return
        item = self.item(answer, plan)
        if item is None or not self._store.put(plan.owner, item):
            self._on_lost()
