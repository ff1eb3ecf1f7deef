"""Runs a paid job: the backend's result, its hash and length, its limits in time and size."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from typing import Protocol

from lcp_gateway._gen.lcpd import lcpd_pb2
from lcp_gateway.node.compute.backend import Backend, ComputeResult, PaidTask, ResultEnd
from lcp_gateway.node.events import EventKind, EventLog
from lcp_gateway.node.faults import FaultInjector, wait_forever
from lcp_gateway.node.jobs import Job
from lcp_gateway.node.ports import ComputeError
from lcp_gateway.node.status import lcp_error
from lcp_gateway.node.tasks import Task

_UNLIMITED_FAULTS = frozenset({"stream-floods"})
_FAILED = lcpd_pb2.Result.STATUS_FAILED
_TOO_LARGE = "result exceeds remote stream limits"


class Sink(Protocol):
    """The receiver of a result. Each call returns when it has room for more, which holds a fast backend back."""

    async def begin(self, content_type: str, content_encoding: str) -> None:
        """Take the head of the result."""
        ...

    async def chunk(self, data: bytes) -> None:
        """Take the next bytes."""
        ...


class Executor:
    """Runs jobs on a backend."""

    def __init__(self, backend: Backend, injector: FaultInjector, events: EventLog, tokens_per_second: float) -> None:
        self._backend = backend
        self._injector = injector
        self._events = events
        self._tokens_per_second = tokens_per_second

    async def run(self, job: Job, task: Task, sink: Sink) -> ResultEnd | None:
        """Run a paid job into a sink, and return its end; None when the call is to end without any result.

        A job that CancelJob has stopped, or whose quote expires meanwhile, sends nothing more: as lcpd-grpcd waits for a peer that
        has fallen silent, the call stays open until its caller gives up.

        Raises:
            CallError: the peer fails the job, which stays paid.
        """
        if job.cancelled:
            await wait_forever()
        fault = job.fault
        async with self._running(job):
            if fault is not None:
                await self._injector.before_result(fault)
                if fault.name == "no-result":
                    return None
            pace = job.model.tokens_per_second or self._tokens_per_second
            limit = job.peer.config.max_stream_bytes
            if fault is not None and fault.name in _UNLIMITED_FAULTS:
                limit = 1 << 63
            digest, length = sha256(), 0
            try:
                result = await self._backend.compute(PaidTask(job.id, task, job.created_at, pace))
                if fault is not None:
                    result = self._injector.change_result(fault, result, stream=task.stream)
                async with _closing(result), aclosing(result.chunks) as chunks:
                    await sink.begin(result.content_type, result.content_encoding)
                    async for chunk in chunks:
                        digest.update(chunk)
                        length += len(chunk)
                        if length > limit:
                            self._events.record_job(EventKind.RESULT, job, "too large")
                            return replace(_end(result, digest.digest(), length), status=_FAILED, message=_TOO_LARGE)
                        await sink.chunk(chunk)
            except ComputeError as error:
                self._events.record_job(EventKind.RESULT, job, "failed")
                raise lcp_error(error.code, error.message) from error
            end = _end(result, digest.digest(), length)
            if fault is not None:
                end = self._injector.change_end(fault, end)
            self._events.record_job(EventKind.RESULT, job, "ok" if fault is None else fault.name)
            return end

    @asynccontextmanager
    async def _running(self, job: Job) -> AsyncIterator[None]:
        """Count a job as running; send nothing more once its quote has expired, or CancelJob has stopped it."""
        runner = asyncio.current_task()
        job.runner = runner
        job.peer.inflight += 1
        try:
            async with asyncio.timeout(max(0.0, job.expires_at - time.time())):
                yield
        except TimeoutError:
            self._events.record_job(EventKind.RESULT, job, "expired")
        except asyncio.CancelledError:
            # CancelJob cancels this task just as a disconnected caller does; only the latter ends the call.
            if not job.cancelled or runner is None or runner.uncancel() > 0:
                raise
        else:
            return
        finally:
            job.peer.inflight -= 1
            job.runner = None
        await wait_forever()


def _end(result: ComputeResult, digest: bytes, length: int) -> ResultEnd:
    return ResultEnd(result.content_type, result.content_encoding, digest, length)


@asynccontextmanager
async def _closing(result: ComputeResult) -> AsyncIterator[None]:
    try:
        yield
    finally:
        if result.close is not None:
            await result.close()
