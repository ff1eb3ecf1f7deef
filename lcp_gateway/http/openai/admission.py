"""The jobs under way: how many there may be, and how they end when the gateway does."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

from lcp_gateway.accounts.callers import Caller
from lcp_gateway.accounts.limits.concurrency import ConcurrencyLimits, Lease
from lcp_gateway.accounts.limits.rates import Allowance
from lcp_gateway.accounts.shared.outage import ShieldedCalls
from lcp_gateway.http.errors import ApiError
from lcp_gateway.purchase.money import Budget, Msat, Period
from lcp_gateway.purchase.order import Order, Task
from lcp_gateway.routing.model_registry import is_auto
from lcp_gateway.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from lcp_gateway.accounts.limits.rate_counters import RateLimits


# What an interrupted job may take to tell its client.
_ABORT_S = 6.0


class Job:
    """One request that may pay, from before its body is read until its last byte is written."""

    __slots__ = ("_handed_over", "_jobs", "_task")

    def __init__(self, jobs: "JobsInFlight") -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - handlers run in tasks
        self._jobs = jobs
        self._task: asyncio.Task[Any] = task
        self._handed_over = False

    def __enter__(self) -> Self:
        self._jobs.started(self)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._handed_over:
            self._jobs.ended(self)

    def hand_over(self, task: "asyncio.Task[Any]") -> None:
        """Let it last as long as another task, and no longer as the request that it began with."""
        self._task = task
        self._handed_over = True
        task.add_done_callback(lambda _task: self._jobs.ended(self))

    def cut(self) -> None:
        """End it without a word: nothing that it writes is being read."""
        self._task.cancel()


class JobsInFlight:
    """Admits jobs up to a limit (0 means none), and lets them finish before the gateway ends."""

    def __init__(self, limit: int, metrics: Metrics) -> None:
        self._limit = limit
        self._metrics = metrics
        self._running: set[Job] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._hurry = asyncio.Event()
        self.draining = False

    def use(self, limit: int) -> None:
        """Admit up to another number; those that run are not ended."""
        self._limit = limit

    def __len__(self) -> int:
        return len(self._running)

    def admit(self) -> Job:
        """Give a job that runs in the current task, to be entered at once.

        Raises:
            ApiError: 503 while the gateway is ending, 429 when all places are taken.
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
        if self._limit and len(self._running) >= self._limit:
            raise ApiError(
                429,
                f"{self._limit} requests are under way, which is this gateway's limit",
                code="rate_limit_exceeded",
                retry=True,
                reason="concurrency",
            )
        return Job(self)

    def started(self, job: Job) -> None:
        """Count a job in."""
        self._running.add(job)
        self._idle.clear()
        self._metrics.job_started()

    def ended(self, job: Job) -> None:
        """Count a job out."""
        self._metrics.job_ended()
        self._running.discard(job)
        if not self._running:
            self._idle.set()

    async def drain(self, grace_s: float, interrupt: Callable[[], int]) -> int:
        """Take no new jobs, wait ``grace_s`` for those that run, then have them ended; gives how many purchases were.

        ``interrupt`` ends the purchases, whose requests then tell their clients why.
        """
        self.draining = True
        await self._wait_idle(grace_s)
        interrupted = interrupt()
        self._hurry.clear()
        await self._wait_idle(_ABORT_S)
        for job in list(self._running):
            job.cut()
        return interrupted

    def hurry(self) -> None:
        """Cut the grace time short."""
        self._hurry.set()

    async def _wait_idle(self, timeout_s: float) -> None:
        waits = [asyncio.create_task(event.wait()) for event in (self._idle, self._hurry)]
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()


T = TypeVar("T")

_BYTES_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Admission:
    """Lets orders through as their caller may place them. ``resolve`` gives the real name behind an alias.

    ``shielded`` runs what is asked of a Redis, where one counts: a caller that leaves during such a call is not served,
    and leaves nothing taken.
    """

    rates: "RateLimits | None"
    jobs: ConcurrencyLimits
    resolve: Callable[[str], str]
    shielded: ShieldedCalls | None = None

    async def job(self, caller: Caller) -> Lease:
        """Count a job of a key; give the lease back at its end.

        Raises:
            TooManyJobs, LimitsAway: see ``ConcurrencyLimits.take``.
        """
        take = self.jobs.take(caller if caller.key_id else None)
        return await (take if self.shielded is None else self.shielded.run(take, Lease.give_back))

    async def count(self, caller: Caller, task: Task) -> Allowance:
        """Count a request against every rate that holds for it, by the size of its body.

        Raises:
            RateLimited, LimitsAway: see ``RateLimits.check``.
        """
        if self.rates is None:
            return Allowance()
        tokens = max(1, len(task.body) // _BYTES_PER_TOKEN)
        # A request that came is counted, also when its client left meanwhile.
        return await self._to_its_end(self.rates.check(caller if caller.key_id else None, tokens))

    async def release(
        self, lease: Lease, allowance: Allowance, request_bytes: int, result_bytes: int
    ) -> None:
        """End a job: give its lease back and count its answer, whose size is known now."""

        async def end() -> None:
            await lease.give_back()
            await self.settle(allowance, request_bytes, result_bytes)

        await self._to_its_end(end())

    async def settle(self, allowance: Allowance, request_bytes: int, result_bytes: int) -> None:
        """Count the answer too, now that its size is known."""
        if self.rates is not None and allowance.counted:
            await self.rates.settle(allowance, (request_bytes + result_bytes) // _BYTES_PER_TOKEN)

    async def _to_its_end(self, call: Coroutine[Any, Any, T]) -> T:
        return await (call if self.shielded is None else self.shielded.run(call))

    def order(
        self, caller: Caller, task: Task, *, request_id: str, limit_msat: Msat | None
    ) -> Order:
        """Give the order that a caller may place.

        Raises:
            ApiError: 403 for a model that its key is not good for.
        """
        rules = caller.rules
        # Most keys are good for all models.
        good_for = self._good_for(rules.models, task.model) if rules.models else rules.models
        caps = [cap for cap in (limit_msat, rules.max_price_msat or None) if cap is not None]
        return Order.of(
            task,
            request_id=request_id,
            key_id=caller.key_id,
            limit_msat=min(caps, default=None),
            account_id=caller.account_id,
            budgets=_budgets(caller),
            models=good_for,
        )

    def _good_for(self, models: frozenset[str], asked: str) -> frozenset[str]:
        """Give the models that a key is good for, by all their names.

        Raises:
            ApiError: the one that is asked for is not among them.
        """
        good_for = models | {self.resolve(name) for name in models}
        wanted = {asked, self.resolve(asked)}
        if not wanted & good_for and not any(map(is_auto, wanted)):
            raise ApiError(
                403,
                "this key is not good for that model",
                code="model_not_allowed",
                param="model",
                reason="auth",
            )
        return good_for


def _budgets(caller: Caller) -> tuple[Budget, ...]:
    rules = caller.rules
    limits: Mapping[Period, Msat] = {
        Period.HOUR: rules.budget_hour_msat,
        Period.DAY: rules.budget_day_msat,
        Period.MONTH: rules.budget_month_msat,
    }
    return tuple(Budget(period, limit, caller.key_id) for period, limit in limits.items() if limit)
