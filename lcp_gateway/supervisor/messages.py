"""What the supervisor and its workers say to each other."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lcp_gateway.config import Loaded


class Message(enum.StrEnum):
    """The kinds of messages. A question's answer is named after it."""

    BOOT = "boot"
    """To the supervisor: how to start (``Boot``)."""
    READY = "ready"
    """To the supervisor: the worker serves (``Ready``)."""
    SCRAPE = "scrape"
    """To the supervisor: the metrics of all workers (``Snapshot``)."""
    OVERVIEW = "overview"
    """To the supervisor: the state of all workers (``Overview``)."""
    SNAPSHOT = "snapshot"
    """To a worker: its metrics (``Snapshot``)."""
    RELOAD = "reload"
    """To a worker: take these settings (``Loaded``; the answer is a ``ReloadResult``)."""
    STOP = "stop"
    """To a worker: end in order; a second time: do not wait for running jobs."""
    ACCEPT_FOR = "accept_for"
    """To a worker: accept connections of another worker, by its place, until it is back."""
    ACCEPT_NO_MORE_FOR = "accept_no_more_for"
    """To a worker: that one is back."""
    LOG_MOVED = "log_moved"
    """To a worker: the log file was rotated."""


@dataclass(frozen=True, slots=True)
class Boot:
    """How a worker starts. ``place`` counts from 0, and a worker that died is replaced at its place.

    ``loaded`` are the settings in force. ``run_id`` names this run of the gateway, ``run_secret`` encrypts what its workers
    share where no other secret is configured. ``sockets`` are the inherited descriptors of ``http_addr`` by place, and
    ``metrics_sockets`` those of ``metrics_addr``; ``job_counts`` is the descriptor of ``JobCounts``. ``log_file`` is the file behind standard output, in the background.
    """

    place: int
    workers: int
    loaded: Loaded
    run_id: str
    sockets: Sequence[Sequence[int]]
    metrics_sockets: Sequence[Sequence[int]]
    job_counts: int
    run_secret: str = field(repr=False)
    log_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker serves. ``status`` is the line for the service manager, ``greeting`` are the lines for standard output."""

    status: str
    greeting: Sequence[str]


@dataclass(frozen=True, slots=True)
class Overview:
    """The workers that serve, of how many, and the jobs under way at all of them."""

    running: int
    of: int
    jobs: int


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """The result of a reload: what changed and what needs a restart, or else the problems. Names, no values."""

    changed: Sequence[str] = ()
    needs_restart: Sequence[str] = ()
    warnings: Sequence[str] = ()
    problems: Sequence[str] = ()
