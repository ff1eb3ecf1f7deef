"""Runs a paid job: the backend's answer, its hash and length, its limits in time and size."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from hashlib import sha256
from typing import Protocol

from lcp_gateway.node.compute.backend import (
    Backend,
    BackendUnavailable,
    ComputeResult,
    PaidTask,
    ResultEnd,
)
from lcp_gateway.node.events import EventKind
from lcp_gateway.node.faults import FaultInjector, wait_forever
from lcp_gateway.node.jobs import Job, JobLog
from lcp_gateway.node.status import LcpErrorCode, lcp_error
from lcp_gateway.node.tasks import Task

_UNLIMITED_FAULTS = frozenset({"stream-floods"})


class Sink(Protocol):
    """Where an answer goes. Each call returns when there is room for more, which is what holds a fast backend back."""

    async def begin(self, content_type: str, content_encoding: str) -> None:
        """Take the head of the answer."""
        ...

    async def chunk(self, data: bytes) -> None:
        """Take the next bytes."""
        ...


class Executor:
    """Runs jobs on a backend."""

    def __init__(
        self, backend: Backend, saboteur: FaultInjector, log: JobLog, tokens_per_second: float
    ) -> None:
        self._backend = backend
        self._saboteur = saboteur
        self._log = log
        self._tokens_per_second = tokens_per_second

    async def run(self, job: Job, task: Task, sink: Sink) -> ResultEnd | None:
        """Run a paid job into a sink, and give its end; None when there is to be no answer at all.

        A job that CancelJob has stopped answers nothing: the call stays open until its caller gives up.

        Raises:
            CallError: the peer fails the job, which stays paid.
        """
        runner = asyncio.current_task()
        job.runner = runner
        job.peer.inflight += 1
        try:
            if job.cancelled:
                await wait_forever()
            async with asyncio.timeout(max(0.0, job.expires_at - time.time())):
                return await self._run(job, task, sink)
        except TimeoutError:
            self._log.record(EventKind.RESULT, job, "expired")
            raise lcp_error(LcpErrorCode.QUOTE_EXPIRED, "quote expired") from None
        except asyncio.CancelledError:
            # CancelJob ends a job in the same way as a caller that goes away; only the latter ends the call.
            if job.cancelled and runner is not None and runner.uncancel() == 0:
                await wait_forever()
            raise
        finally:
            job.peer.inflight -= 1
            job.runner = None

    async def _run(self, job: Job, task: Task, sink: Sink) -> ResultEnd | None:
        fault = job.fault
        if fault is not None:
            await self._saboteur.strike(fault)
            if fault.name == "no-result":
                return None
        work = PaidTask(
            job.id, task, job.created_at, job.model.tokens_per_second or self._tokens_per_second
        )
        limit = job.peer.config.max_stream_bytes
        if fault is not None and fault.name in _UNLIMITED_FAULTS:
            limit = 1 << 63
        digest, length = sha256(), 0
        try:
            answer = await self._backend.answer(work)
            if fault is not None:
                answer = self._saboteur.spoil(fault, answer, stream=task.stream)
            async with _closing(answer), aclosing(answer.chunks) as chunks:
                await sink.begin(answer.content_type, answer.content_encoding)
                async for chunk in chunks:
                    digest.update(chunk)
                    length += len(chunk)
                    if length > limit:
                        raise lcp_error(
                            LcpErrorCode.PAYLOAD_TOO_LARGE, "result exceeds max_stream_bytes"
                        )
                    await sink.chunk(chunk)
        except BackendUnavailable as error:
            self._log.record(EventKind.RESULT, job, "failed")
            raise lcp_error(LcpErrorCode.RATE_LIMITED, f"backend unavailable: {error}") from error
        finish = ResultEnd(answer.content_type, answer.content_encoding, digest.digest(), length)
        if fault is not None:
            finish = self._saboteur.finish(fault, finish)
        self._log.record(EventKind.RESULT, job, "ok" if fault is None else fault.name)
        return finish


@asynccontextmanager
async def _closing(answer: ComputeResult) -> AsyncIterator[None]:
    try:
        yield
    finally:
        if answer.close is not None:
            await answer.close()
