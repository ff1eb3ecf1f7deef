"""Background responses: started by a request that is answered at once, and fetched later by their id."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any

from structlog.typing import FilteringBoundLogger

from lcp_gateway.adapters.json_bytes import dump_json, object_or_none, with_changes
from lcp_gateway.clock import utc_now
from lcp_gateway.http.error_mapping import map_error
from lcp_gateway.http.errors import PAYMENT_HEADER, ApiError, internal_error
from lcp_gateway.http.openai.charges import charge_details, charge_headers
from lcp_gateway.http.openai.response import purchase_headers
from lcp_gateway.purchase.idempotency import RepeatKeys, ResultLost
from lcp_gateway.purchase.journal import RequestRepeated
from lcp_gateway.purchase.order import Order
from lcp_gateway.purchase.purchase import InterruptReason, Purchase
from lcp_gateway.purchase.result_buffer import ResultBuffer
from lcp_gateway.purchase.service import PurchaseService
from lcp_gateway.purchase.shared_purchases import refusal_of
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.responses import ids
from lcp_gateway.responses.background import (
    FINAL_STATUSES,
    BackgroundJob,
    BackgroundRepository,
    LeftJob,
    ResponseStatus,
    echoed_fields,
    response_object,
)
from lcp_gateway.responses.items import Item, ItemKind
from lcp_gateway.responses.recording import Recorder, RecordingPlan
from lcp_gateway.responses.replay import opening_event
from lcp_gateway.responses.store import ResponseStore
from lcp_gateway.responses.stored_items import MemoryItems, StoredItems, StoreUnavailable

# A decision comes with the journal's next commit, or once an unreachable database is back.
_REFUND_S = 600.0
# A cancelled job ends within its peer's time-out for that; one that does not is shown as it is.
_CANCEL_S = 15.0
_FIRST_PAUSE_S = 0.05
_MOST_PAUSE_S = 0.5
_LOOK_EVERY_S = 2.0
# A job that has a name is written to the database and shown within this time, or it did not begin.
_SHOWN_S = 5.0


@dataclass(slots=True, eq=False, kw_only=True)
class BackgroundResponses:
    """The jobs of this process; their results go into the store, under the id that the client was given.

    Without a ``repository`` a restart forgets running jobs. ``on_change`` gets the number of jobs, and the status of one that ended.

    ``place`` limits how many reads of the repository an owner has at one time. ``shared`` is the store of several processes, which
    takes the place of ``store``; ``cancel_elsewhere`` asks the others to cancel a job.
    """

    service: PurchaseService
    store: ResponseStore
    recorder: Recorder
    repository: BackgroundRepository | None
    is_ending: Callable[[], bool]
    on_change: Callable[[int, str], None]
    log: FilteringBoundLogger
    place: Callable[[str], contextlib.AbstractAsyncContextManager[None]] = lambda _owner: contextlib.nullcontext()
    now: Callable[[], datetime] = utc_now
    shared: StoredItems | None = None
    cancel_elsewhere: Callable[[str, str], None] = lambda _owner, _id: None
    _items: StoredItems = field(init=False)
    _running: dict[tuple[str, str], BackgroundJob] = field(init=False, default_factory=dict)
    _storing: dict[BackgroundJob, asyncio.Task[None]] = field(init=False, default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self._items = MemoryItems(self.store) if self.shared is None else self.shared

    @staticmethod
    def of(answer: ResultBuffer) -> BackgroundJob | None:
        """Return the job that an answer belongs to, also after its end."""
        return answer.retained_for if isinstance(answer.retained_for, BackgroundJob) else None

    def repeated(self, order: Order, repeat: RepeatKeys) -> BackgroundJob | None:
        """Return the job that a request repeats; its result may be stored though its bytes are no longer held.

        Raises:
            KeyReused, ResultLost: as ``PurchaseService.find``.
        """
        try:
            answer = self.service.find(order, repeat)
        except ResultLost as lost:
            job = self.of(lost.buffer)
            if job is None:
                raise
            return job
        return None if answer is None else self.of(answer)

    def find(self, owner: str, response_id: str) -> BackgroundJob | None:
        """Return a running job of a credential."""
        return self._running.get((owner, response_id))

    async def begin(
        self,
        order: Order,
        plan: RecordingPlan,
        request: Mapping[str, Any],
        *,
        repeat: RepeatKeys,
        quote_name: str | None,
    ) -> BackgroundJob | str:
        """Begin to buy; return the job, or the one that the request repeats: by its id where another process has it.

        Raises:
            Exception: as ``PurchaseService.find`` and ``start``, and JournalUnavailable where the job cannot be written.
        """
        response_id, now = ids.new_background_id(), self.now()
        # Parsed before anything is bought: after that nothing may fail.
        shown, inputs = echoed_fields(request), plan.inputs()
        if (named := await self._named(order, repeat, response_id)) != response_id:
            return self._running.get((order.key_id, named)) or named
        try:
            if quote_name is not None:
                await self.service.check_quote(order, quote_name)
            if self.repository is not None:
                await self._record(self.repository, response_id, order, repeat, now)
            # Looked up again: the same request may have come while this one was written.
            answer = self.service.find(order, repeat)
            if answer is not None and (earlier := self.of(answer)) is not None:
                self._forget_soon(response_id)
                return earlier
            if answer is None:
                await self._show_running(order, response_id, shown, inputs, now)
                answer = self.service.find(order, repeat)
            if answer is None:
                ordered = replace(order, request_id=response_id)
                answer = self.service.start(ordered, repeat, quote_name)
        except BaseException:
            # Also where the client left while it was written: it does not know the id.
            self._keep_task(asyncio.create_task(self.service.forget_job(order, repeat, response_id)))
            self._keep_task(asyncio.create_task(self._hide(order.key_id, response_id)))
            self._forget_soon(response_id)
            raise
        job = BackgroundJob(
            id=response_id,
            owner=order.key_id,
            created_at=int(now.timestamp()),
            model=order.task.model,
            answer=answer,
            request=shown,
            inputs=inputs,
        )
        job.opening = opening_event(job.document())
        answer.retained_for = job
        self._running[job.owner, job.id] = job
        fixed = replace(plan, fixed_id=job.id, changes=job.changes, headers=headers_of, opening=job.opening)
        if self.shared is not None:
            answer.before_end = partial(self._publish, job, fixed)
        answer.when_ended(lambda _answer: self._ended(job, fixed))
        self.on_change(len(self._running), "")
        return job

    async def _named(self, order: Order, repeat: RepeatKeys, response_id: str) -> str:
        """Return the id of the job that an order belongs to: a new one, or that of another process, which shows it by now.

        Raises:
            KeyReused: the idempotency key came with another body before.
        """
        named = await self.service.name_job(order, repeat, response_id)
        clock = asyncio.get_running_loop().time
        give_up_at = clock() + _SHOWN_S
        while named != response_id and clock() < give_up_at and not await self._is_shown(order.key_id, named):
            await asyncio.sleep(_FIRST_PAUSE_S)
            # That one may not have begun after all.
            named = await self.service.name_job(order, repeat, response_id)
        return named

    async def _is_shown(self, owner: str, response_id: str) -> bool:
        return (
            (owner, response_id) in self._running
            or await self.left(owner, response_id) is not None
            or await self._items.get(owner, ItemKind.RESPONSE, response_id) is not None
        )

    async def _record(
        self, repository: BackgroundRepository, response_id: str, order: Order, repeat: RepeatKeys, now: datetime
    ) -> None:
        """Write a job to the database, unless another process, or this one before a restart, bought its request.

        Raises:
            KeyReused, ResultLost: the request, or another with the same key, was bought before.
            JournalUnavailable: it cannot be written.
        """
        identity = self.service.identity(order, repeat)
        try:
            await repository.record(response_id, key_id=order.key_id, model=order.task.model, at=now, repeat=identity)
        except RequestRepeated as repeated:
            raise refusal_of(repeated.earlier, identity) from None

    @contextlib.contextmanager
    def reading(self, job: BackgroundJob) -> Iterator[None]:
        """Count a reader of a job's answer for the block, so that the answer may be larger than what can be stored."""
        self.service.joined(job.answer)
        try:
            yield
        finally:
            self.service.left(job.answer)

    def attend(self, job: BackgroundJob, release: Awaitable[None]) -> "asyncio.Task[None]":
        """Return a task that lasts as long as a job, and awaits ``release`` at its end."""
        job.attended = True
        return self._keep_task(asyncio.create_task(_attend(job.answer, release)))

    async def cancel(self, job: BackgroundJob) -> None:
        """Cancel a job for its client, and wait until it has ended and is stored."""
        job.cancelled = True
        self.service.interrupt(job.answer, InterruptReason.CANCELLED)
        await self.stored(job)

    async def stored(self, job: BackgroundJob) -> None:
        """Wait until a job has ended, and its end is where all processes find it."""
        await ended(job.answer)
        storing = self._storing.get(job)
        if storing is not None:
            await asyncio.wait({storing})

    def cancel_here(self, owner: str, response_id: str) -> None:
        """Cancel a job for another process, where this one runs it."""
        job = self.find(owner, response_id)
        if job is not None:
            self._keep_task(asyncio.create_task(self.cancel(job)))

    async def end_elsewhere(self, owner: str, response_id: str) -> None:
        """Have the process that runs a job cancel it, and wait until it no longer shows it; return at once where none runs it."""
        left = await self.left(owner, response_id)
        if left is None or not left.runs:
            return
        self.cancel_elsewhere(owner, response_id)
        if await self.wait_elsewhere(owner, response_id, _CANCEL_S) is None:
            return
        for _ in range(round(_CANCEL_S / _FIRST_PAUSE_S)):
            if await self.running_elsewhere(owner, response_id) is None:
                return
            await asyncio.sleep(_FIRST_PAUSE_S)

    async def wait_elsewhere(self, owner: str, response_id: str, wait_s: float) -> Item | None:
        """Wait for the end of a job that another process runs; return its result, None where there is none by then."""
        clock = asyncio.get_running_loop().time
        give_up_at, looks_at, pause_s = clock() + wait_s, clock() + _LOOK_EVERY_S, _FIRST_PAUSE_S
        while True:
            item = await self._items.get(owner, ItemKind.RESPONSE, response_id)
            if item is not None or clock() >= give_up_at:
                return item
            if clock() >= looks_at:
                # Its process may have died.
                left = await self.left(owner, response_id)
                if left is None or not left.runs:
                    return await self._items.get(owner, ItemKind.RESPONSE, response_id)
                looks_at = clock() + _LOOK_EVERY_S
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _MOST_PAUSE_S)

    def may_be_elsewhere(self, response_id: str) -> bool:
        """Return whether another process may run, or have run, a job of this id."""
        return self.shared is not None and response_id.startswith(ids.BACKGROUND_PREFIX)

    async def running_elsewhere(self, owner: str, response_id: str) -> Item | None:
        """Return what other processes know of a job that one of them runs; None where that is nothing."""
        if self.shared is None or not self.may_be_elsewhere(response_id):
            return None
        return await self.shared.get(owner, ItemKind.JOB, response_id)

    async def item(self, job: BackgroundJob) -> Item:
        """Return the stored item of a job that has ended.

        Raises:
            ResultLost: it was bought, and is no longer stored.
        """
        item = await self._items.get(job.owner, ItemKind.RESPONSE, job.id)
        if item is not None:
            return item
        if job.status is ResponseStatus.COMPLETED:
            raise ResultLost(job.answer)
        return _item_of(job, *self.shown(job))

    async def given(self, job: BackgroundJob) -> tuple[bytes, Mapping[str, str]]:
        """Return the response object of a job, with its result if that has come, and its headers.

        Raises:
            ResultLost: as in ``item``.
        """
        if not job.answer.ended:
            return self.shown(job)
        item = await self.item(job)
        return item.document(), item.headers

    def shown(self, job: BackgroundJob) -> tuple[bytes, Mapping[str, str]]:
        """Return the response object of a job without a result, and its headers."""
        answer = job.answer
        if job.status not in {ResponseStatus.FAILED, ResponseStatus.CANCELLED}:
            return job.document(), headers_of(answer)
        failure = _failure(job)
        error = failure.as_object()
        money = error.pop("lcp", None) or {"payment": failure.verdict.value}
        assert isinstance(money, dict)  # noqa: S101 - as ``as_object`` writes it
        money.update(charge_details(answer.purchase))
        # The client that cancelled it knows why there is no result.
        shown_error = None if job.status is ResponseStatus.CANCELLED else error
        return job.document(error=shown_error, money=money), headers_of(answer)

    async def left(self, owner: str, response_id: str) -> LeftJob | None:
        """Return the response object and headers of a job that this process does not run; None for an unknown id.

        Raises:
            Exception: the journal cannot be read.
        """
        if self.repository is None or not response_id.startswith(ids.BACKGROUND_PREFIX):
            return None
        async with self.place(owner):
            left = await self.repository.find(response_id, owner)
        if left is None:
            return None
        lost = {
            "code": "server_error",
            "message": "the gateway stopped during this request, does not know the state of its payment, or could not store its result; "
            "the result is lost",
        }
        shown = response_object(
            response_id,
            created_at=int(left.created_at.timestamp()),
            model=left.model,
            status=ResponseStatus.IN_PROGRESS if left.elsewhere else ResponseStatus.FAILED,
            request={},
            error=None if left.elsewhere else lost,
            money=left.money,
        )
        headers = {PAYMENT_HEADER: str(left.money["payment"]), **charge_headers(left.money)}
        document = dump_json(shown)
        if left.elsewhere and (running := await self.running_elsewhere(owner, response_id)) is not None:
            document = with_changes(running.blocks[0], {"status": ResponseStatus.IN_PROGRESS.value})
        return LeftJob(document, headers, left.elsewhere)

    async def final_state(self, owner: str, item: Item) -> LeftJob | None:
        """Return the journal's state of a job whose payment was unknown at its end; None while it still is."""
        if not item.background or item.headers.get(PAYMENT_HEADER) != Verdict.UNKNOWN.value:
            return None
        try:
            left = await self.left(owner, item.id)
        except Exception as error:  # noqa: BLE001 - the payment stays unknown until the journal can be read
            self.log.info("a payment cannot be looked up", error=type(error).__name__)
            return None
        is_new = left is not None and left.headers[PAYMENT_HEADER] != Verdict.UNKNOWN.value
        return left if is_new else None

    async def forget(self, owner: str, response_id: str) -> bool:
        """Forget a job that this process does not run; return whether there was one."""
        if await self.left(owner, response_id) is None or self.repository is None:
            return False
        await self.repository.forget(response_id)
        # Its process may have died.
        await self._hide(owner, response_id)
        return True

    async def _show_running(
        self, order: Order, response_id: str, shown: Mapping[str, Any], inputs: tuple[bytes, ...], now: datetime
    ) -> None:
        """Store what other processes show of a job until its result takes its place."""
        if self.shared is None:
            return
        created_at = int(now.timestamp())
        document = dump_json(
            response_object(
                response_id, created_at=created_at, model=order.task.model, status=ResponseStatus.QUEUED, request=shown
            )
        )
        item = Item(
            kind=ItemKind.JOB,
            id=response_id,
            created_at=created_at,
            model=order.task.model,
            blocks=(document,),
            stream=False,
            inputs=inputs,
            background=True,
            opening=opening_event(document),
        )
        # They show less of it then.
        with contextlib.suppress(StoreUnavailable):
            await self.shared.put(order.key_id, item)

    async def _hide(self, owner: str, response_id: str) -> None:
        """Remove what other processes show of a job that runs."""
        if self.shared is not None:
            with contextlib.suppress(StoreUnavailable):
                await self.shared.remove(owner, ItemKind.JOB, response_id)

    async def _publish(self, job: BackgroundJob, plan: RecordingPlan, _answer: ResultBuffer) -> None:
        """Store a result where all processes find it, before a client can know that there is one."""
        item = self._result_item(job, plan)
        with contextlib.suppress(StoreUnavailable):
            job.is_stored = item is not None and await self._items.put(job.owner, item)

    async def _end_shared(self, job: BackgroundJob) -> None:
        """Store a job that has no result, or whose result cannot be stored; until then it is found here."""
        if not job.is_stored:
            with contextlib.suppress(StoreUnavailable):
                job.is_stored = await self._items.put(job.owner, _item_of(job, *self.shown(job)))
        del self._running[job.owner, job.id]
        # Last: a process that deletes it waits for this.
        await self._hide(job.owner, job.id)
        self._after_end(job)
        del self._storing[job]

    def _ended(self, job: BackgroundJob, plan: RecordingPlan) -> None:
        answer = job.answer
        if self.shared is not None:
            if answer.error is None and not job.is_stored:
                job.problem = _not_kept(answer)
            self._storing[job] = self._keep_task(asyncio.create_task(self._end_shared(job)))
            return
        del self._running[job.owner, job.id]
        item = self._result_item(job, plan) if answer.error is None else None
        job.is_stored = item is not None and self.store.put(job.owner, item)
        if not job.is_stored:
            if answer.error is None:
                job.problem = _not_kept(answer)
            job.is_stored = self.store.put(job.owner, _item_of(job, *self.shown(job)))
        self._after_end(job)

    def _after_end(self, job: BackgroundJob) -> None:
        answer = job.answer
        if answer.purchase is not None and answer.purchase.awaits_refund:
            self._keep_task(asyncio.create_task(self._tell_refund(job, answer.purchase)))
        else:
            job.release()
        self.on_change(len(self._running), job.status.value)
        self.log.info("background job ended", response_id=job.id, status=job.status.value, payment=answer.verdict.value)
        is_known = answer.verdict is not Verdict.UNKNOWN
        if job.is_stored and is_known and not self.is_ending():
            # The rows of a gateway that shuts down, of results that could not be stored and of unknown payments stay:
            # a later gateway answers the client from them.
            self._forget_soon(job.id)

    async def _tell_refund(self, job: BackgroundJob, purchase: Purchase) -> None:
        """Store a failed job again once its refund is decided, unless it was deleted meanwhile."""
        await purchase.wait_for_refund(_REFUND_S)
        with contextlib.suppress(StoreUnavailable):
            if await self._items.get(job.owner, ItemKind.RESPONSE, job.id) is not None:
                await self._items.put(job.owner, _item_of(job, *self.shown(job)))
        job.release()

    def _result_item(self, job: BackgroundJob, plan: RecordingPlan) -> Item | None:
        """Return the item of a job's result; None where it cannot be shown as a response."""
        item = self.recorder.item(job.answer, plan)
        if item is None:
            return None
        try:
            document = item.document()
        except ValueError:
            # The job fails at once, and not at the next GET.
            return None
        if not item.stream and (object_or_none(document) or {}).get("status") not in FINAL_STATUSES:
            # A client would poll it for ever.
            changes = {**item.changes, "status": ResponseStatus.COMPLETED.value}
            item = replace(item, changes=changes)
        return item

    def _forget_soon(self, response_id: str) -> None:
        if self.repository is not None:
            self._keep_task(asyncio.create_task(self._forget_row(self.repository, response_id)))

    async def _forget_row(self, repository: BackgroundRepository, response_id: str) -> None:
        try:
            await repository.forget(response_id)
        except Exception as error:  # noqa: BLE001 - a row too many does no harm, and is deleted in time
            self.log.info("a background job cannot be forgotten", error=type(error).__name__)

    def _keep_task(self, task: "asyncio.Task[None]") -> "asyncio.Task[None]":
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Logged here: no caller awaits the task.
            self.log.error("work for a background job failed", exc_info=error)


async def ended(answer: ResultBuffer) -> None:
    """Wait for an answer's end."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    answer.when_ended(lambda _answer: None if done.done() else done.set_result(None))
    await done


async def _attend(answer: ResultBuffer, release: Awaitable[None]) -> None:
    try:
        await ended(answer)
    finally:
        await release


def headers_of(answer: ResultBuffer) -> Mapping[str, str]:
    """Return the headers of the purchase so far."""
    purchase = answer.purchase
    if purchase is None:
        return {PAYMENT_HEADER: answer.verdict.value}
    return {**purchase_headers(purchase), **charge_headers(charge_details(purchase))}


def _failure(job: BackgroundJob) -> ApiError:
    error, answer = job.error, job.answer
    if isinstance(error, ApiError):
        return error
    quote = answer.purchase.quote if answer.purchase is not None else None
    found = map_error(error) if error is not None else None
    return found or internal_error(answer.verdict, quote)


def _not_kept(answer: ResultBuffer) -> ApiError:
    return ApiError(
        502,
        "the result came, and is larger than the store allows or cannot be shown as a response",
        code="answer_not_stored",
        verdict=answer.verdict,
        quote=answer.purchase.quote if answer.purchase is not None else None,
    )


def _item_of(job: BackgroundJob, document: bytes, headers: Mapping[str, str]) -> Item:
    return Item(
        kind=ItemKind.RESPONSE,
        id=job.id,
        created_at=job.created_at,
        model=job.model,
        blocks=(document,),
        stream=False,
        inputs=job.inputs,
        background=True,
        headers=headers,
    )
