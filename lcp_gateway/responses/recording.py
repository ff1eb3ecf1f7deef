"""Keeps what was bought for those who will ask for it: when an answer ends well, and only then."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from lcp_gateway.adapters.sse import is_event_stream
from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.purchase.result_buffer import ResultBuffer, ResultGone
from lcp_gateway.responses.documents import find_id
from lcp_gateway.responses.history import input_segment, messages_segment
from lcp_gateway.responses.items import Item, ItemKind, metadata_text
from lcp_gateway.responses.store import ResponseStore

_KINDS = {TaskKind.RESPONSES: ItemKind.RESPONSE, TaskKind.CHAT_COMPLETIONS: ItemKind.CHAT}
_PLAIN = frozenset({"", "identity"})


@dataclass(frozen=True, slots=True)
class RecordingPlan:
    """What is to be kept of an answer. ``body`` is the request as the client sent it, ``earlier`` the turns before it.

    ``given_id`` is for a result that has none, and ``fixed_id`` for one that goes by this id whatever its own is.
    ``opening`` is the event that its client got before those of the provider.
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
        """Give the segments of all that was said before the answer."""
        of_chat = self.kind is TaskKind.CHAT_COMPLETIONS
        segment = messages_segment(self.body) if of_chat else input_segment(self.body)
        return (*self.earlier, segment) if segment else self.earlier


class Recorder:
    """Puts answers into the store."""

    def __init__(
        self,
        store: ResponseStore[Item],
        *,
        now: Callable[[], float],
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        """``now`` gives seconds since 1970; ``on_lost`` hears of an answer that could not be kept."""
        self._store = store
        self._now = now
        self._on_lost = on_lost

    def keep(self, answer: ResultBuffer, plan: RecordingPlan) -> None:
        """Keep an answer once it has come whole. Takes references to its bytes: no stream waits for it."""
        answer.when_ended(partial(self._ended, plan))

    def item(self, answer: ResultBuffer, plan: RecordingPlan) -> Item | None:
        """Give what is kept of an answer that has come whole; None where it is no longer held, or has no id."""
        head, purchase = answer.head, answer.purchase
        if head is None or head.content_encoding.strip().lower() not in _PLAIN:
            return None
        try:
            blocks = answer.blocks()
        except ResultGone:
            return None
        stream = is_event_stream(head.content_type)
        try:
            own_id = find_id(blocks, stream)
        except ValueError:
            own_id = None
        item_id = plan.fixed_id or own_id or plan.given_id
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
            # One string instead of many small ones, each of which would cost more than it holds.
            blocks=(b"".join(blocks),),
            stream=stream,
            opening=plan.opening if stream else b"",
            inputs=plan.inputs(),
            changes=changes,
            attached=metadata_text(plan.metadata),
            background=bool(plan.fixed_id),
            headers=plan.headers(answer),
        )

    def _ended(self, plan: RecordingPlan, answer: ResultBuffer) -> None:
        if answer.error is not None:
            return
        item = self.item(answer, plan)
        if item is None or not self._store.put(plan.owner, item):
            self._on_lost()
