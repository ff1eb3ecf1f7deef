"""The supervisor of every task that runs as long as the gateway, and the bound on short tasks.

A task that ends, by an error or because it returned, is logged with its cause, counted, named in ``/readyz`` while it
is down, and started again after a pause that grows with each failure.
"""

import asyncio
import contextlib
import functools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Final, NamedTuple

from structlog.typing import FilteringBoundLogger

from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.ports import StartTask
from lcp_gateway.telemetry.metric_table import TASKS

Run = Callable[[], Coroutine[Any, Any, None]]
"""The body of a task; called again for each restart."""

NEEDED: Final = frozenset({"journal", "keys", "nodes", "peers"})
"""The tasks without which the gateway must not or cannot sell: while one is down, ``/readyz`` is 503."""


# Longer than any task needs to clean up.
_CANCEL_AGAIN_S = 5.0


class BackgroundTask(NamedTuple):
    """A task to be run beside the requests. ``name`` is one of ``TASKS``."""

    name: str
    run: Run


class TaskReturned(Exception):
    """A task that must run as long as the gateway returned without an error."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """The pauses before restarts: from ``first_s``, doubled for each failure in a row, to ``most_s``.

    A task counts as down until it has run for ``steady_s`` after a restart, so that one which fails again at once is not
    reported as up in between; after ``reset_s`` without an error the pauses begin from the first again.
    """

    first_s: float = 0.25
    most_s: float = 15.0
    steady_s: float = 2.0
    reset_s: float = 60.0


@dataclass(slots=True, eq=False)
class _Instance:
    """One supervised run of a task; a task of that name may run several times, once for each node for example."""

    name: str
    run: Run
    may_return: Callable[[], bool]
    failures: int = 0
    problem: str = ""
    started_at: float = 0.0
    is_running: bool = False


@dataclass(slots=True, eq=False)
class BackgroundTasks:
    """Runs the tasks that last as long as the gateway, on one event loop.

    ``on_restart`` is called with the name of each task that has ended and will be restarted. ``clock`` is a monotonic
    clock in seconds; a test may replace ``sleep`` and ``chance`` (0 to 1).
    """

    log: FilteringBoundLogger
    _: KW_ONLY
    on_restart: Callable[[str], None] = lambda _name: None
    backoff: Backoff = Backoff()
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    chance: Callable[[], float] = random.random  # noqa: S311 - spreads restarts, keeps no secret
    _instances: set[_Instance] = field(init=False, default_factory=set)
    _restarts: dict[str, int] = field(init=False, default_factory=dict)

    def start(self, name: str, run: Run, *, may_return: Callable[[], bool] = bool) -> asyncio.Task[None]:
        """Start a task; cancel the returned one to end it.

        ``may_return``, called after the task has returned, says whether that is expected: a writer may be closed, for
        example.
        """
        if name not in TASKS:
            raise ValueError(f"{name} is not in the table of tasks")
        self._restarts.setdefault(name, 0)
        instance = _Instance(name, run, may_return)
        self._instances.add(instance)
        task = asyncio.create_task(self._supervise(instance), name=name)
        # A callback, since a task that is cancelled before its first step runs no code of its own.
        task.add_done_callback(lambda _task: self._instances.discard(instance))
        return task

    def starter(self, name: str) -> StartTask:
        """Return the function that starts tasks of this name, for parts that start them on demand."""
        return functools.partial(self.start, name)

    @contextlib.asynccontextmanager
    async def running(self, task: BackgroundTask) -> AsyncIterator[None]:
        """Run a task for the block, and wait for its end."""
        started = self.start(task.name, task.run)
        try:
            yield
        finally:
            # Again, since a library may take a cancellation for a lost connection, and the loop around it goes on.
            while not started.done():
                started.cancel()
                await asyncio.wait([started], timeout=_CANCEL_AGAIN_S)

    def report(self) -> Mapping[str, object]:
        """Return the state of each task that was started, by its name, for ``/readyz``."""
        down = self._down()
        return {
            name: {"up": name not in down, "restarts": restarts} | ({"problem": down[name]} if name in down else {})
            for name, restarts in sorted(self._restarts.items())
        }

    def reasons(self) -> Iterable[str]:
        """Yield the reasons why the gateway must not sell now: the needed tasks that are down."""
        for name, problem in sorted(self._down().items()):
            if name in NEEDED:
                yield f"the background task {name} is down: {problem}"

    def _down(self) -> Mapping[str, str]:
        now = self.clock()
        return {
            instance.name: instance.problem
            for instance in self._instances
            if instance.problem and not (instance.is_running and now - instance.started_at >= self.backoff.steady_s)
        }

    async def _supervise(self, instance: _Instance) -> None:
        while True:
            instance.started_at = self.clock()
            instance.is_running = True
            try:
                await instance.run()
                if instance.may_return() or _is_cancelled():
                    return
                raise TaskReturned("the task returned although it must run as long as the gateway")  # noqa: TRY301 - as any other error
            except asyncio.CancelledError as error:
                if _is_cancelled():
                    raise
                # This task was not cancelled, but a future that it awaited.
                await self._failed(instance, error)
            except Exception as error:
                # The task has to go on after any error.
                if _is_cancelled():
                    self.log.warning("a background task failed as it was ended", task=instance.name, exc_info=error)
                    return
                await self._failed(instance, error)

    async def _failed(self, instance: _Instance, error: BaseException) -> None:
        backoff = self.backoff
        instance.is_running = False
        if self.clock() - instance.started_at >= backoff.reset_s:
            instance.failures = 0
        # No power of more than this is needed to reach any longest pause.
        pause_s = min(backoff.first_s * 2 ** min(instance.failures, 20), backoff.most_s)
        # Between a half and the whole, so that replicas which failed together do not come back together.
        pause_s *= 0.5 + self.chance() / 2
        instance.failures += 1
        # The type of the error only: `/readyz` needs no key, and an error's text may quote values. The log has the
        # whole error.
        instance.problem = type(error).__name__
        self._restarts[instance.name] += 1
        self.on_restart(instance.name)
        self.log.error(
            "a background task ended and will be restarted",
            task=instance.name,
            failures_in_a_row=instance.failures,
            restart_in_s=round(pause_s, 3),
            exc_info=error,
        )
        await self.sleep(pause_s)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


_MAX_UNDER_WAY = 1_000


class ShortTasks:
    """Runs short tasks, bounded in number; each bounds its own time."""

    def __init__(
        self,
        on_error: Callable[[UpstreamError], None],
        on_unexpected: Callable[[Exception], None] = lambda _error: None,
    ) -> None:
        """``on_unexpected`` gets every error that is not the provider's."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._on_error = on_error
        self._on_unexpected = on_unexpected

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Start a task, unless too many are under way already."""
        if len(self._tasks) >= _MAX_UNDER_WAY:
            work.close()
            return
        task = asyncio.create_task(self._run(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Wait for the tasks under way."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _run(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except UpstreamError as error:
            self._on_error(error)
        except Exception as error:  # noqa: BLE001 - no caller waits for it: it must not be lost
            self._on_unexpected(error)
