"""Quoted and paid jobs: bounded in number and in bytes, gone with the process."""

import asyncio
import enum
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from lcp_gateway.node.config import ModelConfig
from lcp_gateway.node.faults import Fault
from lcp_gateway.node.peers import Peer
from lcp_gateway.node.status import not_found
from lcp_gateway.node.tasks import Task

MAX_JOBS: Final = 20_000
MAX_HELD_BYTES: Final = 256 * 1024 * 1024


class JobPayment(enum.Enum):
    """The state of a job's payment."""

    NONE = enum.auto()
    IN_FLIGHT = enum.auto()
    SETTLED = enum.auto()


@dataclass(slots=True, eq=False)
class Job:
    """A quoted task. ``task`` is released once the job runs; ``created_at`` and ``expires_at`` are Unix seconds.

    ``invoice_problem`` is the error that the daemon's check of the invoice before paying will give.
    """

    id: bytes
    peer: Peer
    model: ModelConfig
    task: Task | None
    price_msat: int
    created_at: int
    expires_at: int
    payment_hash: bytes
    preimage: bytes
    invoice_problem: str | None = None
    fault: Fault | None = None
    payment: JobPayment = JobPayment.NONE
    fee_msat: int = 0
    cancelled: bool = False
    runner: asyncio.Task[None] | None = None


class Jobs:
    """Jobs by id; the oldest are dropped first."""

    def __init__(self, max_jobs: int = MAX_JOBS, max_held_bytes: int = MAX_HELD_BYTES) -> None:
        self._jobs: OrderedDict[bytes, Job] = OrderedDict()
        self._max_jobs = max_jobs
        self._max_held_bytes = max_held_bytes
        self._held_bytes = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: Job) -> None:
        """Add a job, and drop the oldest while they take too much room."""
        self._jobs[job.id] = job
        self._held_bytes += len(job.task.body) if job.task else 0
        while len(self._jobs) > self._max_jobs or (self._held_bytes > self._max_held_bytes and len(self._jobs) > 1):
            _, oldest = self._jobs.popitem(last=False)
            self._held_bytes -= len(oldest.task.body) if oldest.task else 0

    def find(self, peer: Peer, job_id: bytes) -> Job:
        """Find a job of a peer.

        Raises:
            CallError: NOT_FOUND; the daemon knows no job from before its start either.
        """
        job = self._jobs.get(job_id)
        if job is None or job.peer is not peer:
            raise not_found("job not found")
        return job

    def take_task(self, job: Job) -> Task:
        """Take a job's task out to run it, so that its bytes are not held until the job is dropped.

        Raises:
            CallError: it was taken before.
        """
        task, job.task = job.task, None
        if task is None:
            raise not_found("job not found")
        if job.id in self._jobs:
            self._held_bytes -= len(task.body)
        return task
