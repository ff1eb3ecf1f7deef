"""Admission of requests that buy: their checks before a provider is asked, and the resources held until their end."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from lcp_gateway.accounts.callers import Caller
from lcp_gateway.accounts.limits.concurrency import ConcurrencyLimits, Lease
from lcp_gateway.accounts.limits.joint import JointLimits
from lcp_gateway.accounts.limits.rates import Allowance, RateLimits
from lcp_gateway.accounts.shared.outage import ShieldedCalls
from lcp_gateway.constants import BYTES_PER_TOKEN
from lcp_gateway.http.context import RequestContext
from lcp_gateway.http.error_mapping import map_purchase_error
from lcp_gateway.http.errors import ApiError
from lcp_gateway.purchase.errors import Refused
from lcp_gateway.purchase.money import Budget, Msat, Period
from lcp_gateway.purchase.order import Order, Task
from lcp_gateway.purchase.result_buffer import ResultBuffer
from lcp_gateway.routing.model_registry import is_auto
from lcp_gateway.telemetry.metrics import Metrics

T = TypeVar("T")

# How long interrupted requests may take to send the error to their clients.
_ABORT_S = 6.0
_NOT_COUNTED: Final = Allowance()


@dataclass(frozen=True, slots=True)
class Admission:
    """The limits that the settings and a caller's key set. ``resolve`` returns the real name behind an alias.

    ``shielded`` runs calls to Redis, where Redis counts: a client that leaves during such a call is not served, and its
    lease is released. ``joint`` counts jobs and rates in one such call.
    """

    rates: RateLimits | None
    jobs: ConcurrencyLimits
    resolve: Callable[[str], str]
    shielded: ShieldedCalls | None = None
    joint: JointLimits | None = None

    async def lease(self, caller: Caller) -> Lease:
        """Count a job of a key; the lease has to be released.

        Raises:
            TooManyConcurrentJobs, LimitsUnavailable: see ``ConcurrencyLimits.take``.
        """
        counted = caller if caller.key_id else None
        if self.shielded is None or not self.jobs.limit_of(counted):
            return await self.jobs.take(counted)
        return await self.shielded.run(self.jobs.take(counted), Lease.release)

    async def count(self, caller: Caller, task: Task) -> Allowance:
        """Count a request against every rate that applies to it, by the size of its body.

        Raises:
            RateLimited, LimitsUnavailable: see ``RateLimits.check``.
        """
        counted = caller if caller.key_id else None
        if self.rates is None or not self.rates.apply_to(counted):
            return _NOT_COUNTED
        # A request is counted, even if its client has left meanwhile.
        return await self._to_its_end(self.rates.check(counted, _tokens(task)))

    def is_joint(self, caller: Caller) -> bool:
        """Return whether a caller's job and its rates are counted by ``take``, in one call."""
        return (
            self.joint is not None and self.shielded is not None and bool(caller.key_id) and self.joint.apply_to(caller)
        )

    async def take(self, caller: Caller, task: Task) -> tuple[Lease, Allowance]:
        """Count a job of a key and its request, both or neither; of a caller for whom that ``is_joint``.

        Raises:
            TooManyConcurrentJobs, RateLimited, LimitsUnavailable: see ``JointLimits.take``.
        """
        assert self.joint is not None and self.shielded is not None  # noqa: S101, PT018 - see ``is_joint``
        return await self.shielded.run(self.joint.take(caller, _tokens(task)), _release_first)

    async def release(
        self, leases: Sequence[Lease], allowance: Allowance, request_bytes: int, result_bytes: int
    ) -> None:
        """Release the leases, and count the result, whose size is known now, against the rates."""
        if not allowance.counted and not any(lease.is_counted for lease in leases):
            return

        ends: list[Coroutine[Any, Any, None]] = [lease.release() for lease in leases]
        if self.rates is not None and allowance.counted:
            tokens = (request_bytes + result_bytes) // BYTES_PER_TOKEN
            ends.append(self.rates.settle(allowance, tokens))
        if self.shielded is None:
            # Counted in this process, where no await suspends: a client that disconnects after its whole response would
            # cancel this task at one that does, and be recorded as one that left before the end.
            for each in ends:
                await each
            return

        async def end() -> None:
            # At one time, so that Redis gets them together.
            await asyncio.gather(*ends)

        await self.shielded.run(end())

    async def _to_its_end(self, call: Coroutine[Any, Any, T]) -> T:
        return await (call if self.shielded is None else self.shielded.run(call))

    def order(self, caller: Caller, task: Task, *, request_id: str, limit_msat: Msat | None) -> Order:
        """Return the order that a caller may place.

        Raises:
            ApiError: 403 for a model that the caller's key may not buy.
        """
        rules = caller.rules
        # Most keys may buy all models.
        models = self._models(rules.models, task.model) if rules.models else rules.models
        caps = [cap for cap in (limit_msat, rules.max_price_msat or None) if cap is not None]
        return Order.of(
            task,
            request_id=request_id,
            key_id=caller.key_id,
            limit_msat=min(caps, default=None),
            account_id=caller.account_id,
            budgets=_budgets(caller),
            models=models,
        )

    def _models(self, models: frozenset[str], requested: str) -> frozenset[str]:
        """Return the models that a key may buy, by all their names.

        Raises:
            ApiError: the requested model is not among them.
        """
        allowed = models | {self.resolve(name) for name in models}
        names = {requested, self.resolve(requested)}
        if not names & allowed and not any(map(is_auto, names)):
            raise ApiError(
                403, "this key is not good for that model", code="model_not_allowed", param="model", reason="auth"
            )
        return allowed


def _tokens(task: Task) -> int:
    return max(1, len(task.body) // BYTES_PER_TOKEN)


async def _release_first(taken: tuple[Lease, Allowance]) -> None:
    await taken[0].release()


def _budgets(caller: Caller) -> tuple[Budget, ...]:
    rules = caller.rules
    if not (rules.budget_hour_msat or rules.budget_day_msat or rules.budget_month_msat):
        return ()
    limits: Mapping[Period, Msat] = {
        Period.HOUR: rules.budget_hour_msat,
        Period.DAY: rules.budget_day_msat,
        Period.MONTH: rules.budget_month_msat,
    }
    return tuple(Budget(period, limit, caller.key_id) for period, limit in limits.items() if limit)


class JobsInFlight:
    """The requests that may pay, up to a limit (0 means none); a gateway that shuts down waits for them."""

    def __init__(self, limit: int, metrics: Metrics, count: Callable[[int], int] | None = None) -> None:
        """``count`` counts by so many, and returns the jobs of all processes, where the gateway has several."""
        self._count = count
        self._limit = limit
        self._metrics = metrics
        self._running: set[AdmissionTicket] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._hurry = asyncio.Event()
        self.draining = False

    def use(self, limit: int) -> None:
        """Change the limit; running jobs are not ended."""
        self._limit = limit

    def __len__(self) -> int:
        return len(self._running)

    def enter(self, ticket: "AdmissionTicket") -> None:
        """Count a request in; ``leave`` has to follow.

        Raises:
            ApiError: 503 while the gateway shuts down, 429 at the limit.
        """
        if self.draining:
            raise ApiError(
                503,
                "the gateway is shutting down",
                code="shutting_down",
                retry=True,
                reason="draining",
                headers={"Connection": "close"},
            )
        # Counted first: of two processes at one time each sees the other's job.
        running = len(self._running) + 1 if self._count is None else self._count(1)
        if self._limit and running > self._limit:
            if self._count is not None:
                self._count(-1)
            raise ApiError(
                429,
                f"{self._limit} requests are under way, which is this gateway's limit",
                code="rate_limit_exceeded",
                retry=True,
                reason="concurrency",
            )
        self._running.add(ticket)
        self._idle.clear()
        self._metrics.job_started()

    def leave(self, ticket: "AdmissionTicket") -> None:
        """Count a request out."""
        self._metrics.job_ended()
        if self._count is not None:
            self._count(-1)
        self._running.discard(ticket)
        if not self._running:
            self._idle.set()

    async def drain(self, grace_s: float, interrupt: Callable[[], int]) -> int:
        """Admit no new jobs, wait ``grace_s`` for the running ones, then end them; return how many purchases were ended.

        ``interrupt`` ends the purchases, whose requests then tell their clients why.
        """
        self.draining = True
        await self._wait_idle(grace_s)
        interrupted = interrupt()
        self._hurry.clear()
        await self._wait_idle(_ABORT_S)
        for ticket in list(self._running):
            ticket.cut()
        return interrupted

    def hurry(self) -> None:
        """Cut the grace time short."""
        self._hurry.set()

    async def _wait_idle(self, timeout_s: float) -> None:
        waits = [asyncio.create_task(event.wait()) for event in (self._idle, self._hurry)]
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()


class AdmissionTicket:
    """The resources of one request that may pay: a place among the jobs, its key's lease, its count against the rates.

    Held from before the body is read until the last byte is written, or by ``hand_over`` for as long as a background job.
    """

    __slots__ = (
        "_admission",
        "_allowance",
        "_context",
        "_in_flight",
        "_is_joint",
        "_leases",
        "_task",
        "_until",
        "is_written",
    )

    def __init__(
        self, admission: Admission, in_flight: JobsInFlight, context: RequestContext, *, is_received: bool = False
    ) -> None:
        """``is_received``: the whole body is here already. Then a lease may be taken with the count of the request."""
        self._is_joint = is_received and admission.is_joint(context.caller)
        self._admission = admission
        self._in_flight = in_flight
        self._context = context
        self._allowance = _NOT_COUNTED
        self._leases: list[Lease] = []
        self._until: asyncio.Task[None] | None = None
        self.is_written = False
        """Whether the client has been sent its whole response: then it may leave while the rest is done."""

    async def __aenter__(self) -> Self:
        """Take a place and a lease.

        Raises:
            ApiError: the gateway shuts down, or a limit is reached.
        """
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - handlers run in tasks
        self._task: asyncio.Task[Any] = task
        self._in_flight.enter(self)
        if self._is_joint:
            return self
        try:
            self._leases.append(await self._admission.lease(self._context.caller))
        except BaseException as error:
            self._in_flight.leave(self)
            if self._leases:
                await self._admission.release(self._leases, self._allowance, 0, 0)
            if isinstance(error, Refused):
                raise map_purchase_error(error) from error
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._until is not None:
            return
        try:
            await self.release()
        except asyncio.CancelledError:
            # The calls of Redis go on. The client has its whole response, and may leave.
            if not self.is_written:
                raise
            self._task.uncancel()
        finally:
            self._in_flight.leave(self)

    async def count(self, task: Task) -> None:
        """Count the request against its rates, and put the rest of them into the response's headers.

        Raises:
            RateLimited, LimitsUnavailable: see ``RateLimits.check``.
            TooManyConcurrentJobs: the lease is taken with it, and as many jobs as may run do.
        """
        if self._is_joint:
            lease, self._allowance = await self._admission.take(self._context.caller, task)
            self._leases.append(lease)
        else:
            self._allowance = await self._admission.count(self._context.caller, task)
        self._context.headers.update(self._allowance.headers)

    async def release(self, answer: ResultBuffer | None = None) -> None:
        """Release the lease, and count the result: that of ``answer``, by default the response's."""
        context = self._context
        result_bytes = context.result_bytes if answer is None else answer.size
        await self._admission.release(self._leases, self._allowance, context.request_bytes, result_bytes)

    def hand_over(self, until: "asyncio.Task[None]") -> None:
        """Hold the place until a task has ended, which has to await ``release``, and not only until the request ends."""
        self._until = self._task = until
        until.add_done_callback(lambda _task: self._in_flight.leave(self))

    def cut(self) -> None:
        """End the request without an error of its own: its client no longer reads."""
        self._task.cancel()
