"""The jobs under way: how many there may be, and how they end when the gateway does."""

import asyncio
from collections.abc import Callable
from typing import Any, Self

from lcp_gateway.http.errors import ApiError
from lcp_gateway.telemetry.metrics import Metrics

# What an interrupted job may take to tell its client.
_ABORT_S = 6.0


class Job:
    """One request that may pay, from before its body is read until its last byte is written."""

    __slots__ = ("_handed_over", "_jobs", "_task")

    def __init__(self, jobs: "Jobs") -> None:
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


class Jobs:
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
