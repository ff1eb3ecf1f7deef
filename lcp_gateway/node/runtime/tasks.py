"""The tasks of a node under one supervisor: what runs as long as the node starts again when it ends, and no error is silent."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

from lcp_gateway.node.runtime.log import NodeLog

Run = Callable[[], Coroutine[Any, Any, None]]

_MAX_DOUBLINGS: Final = 20


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses before another try, in seconds: from ``first_s``, doubled for each failure in a row, to ``most_s``.

    A task that ran for ``reset_s`` begins with the first pause again.
    """

    first_s: float = 0.25
    most_s: float = 5.0
    reset_s: float = 5.0

    def pause_s(self, failures: int) -> float:
        """Return the pause after that many failures in a row, the last one included."""
        return float(min(self.first_s * 2 ** min(failures - 1, _MAX_DOUBLINGS), self.most_s))


class TaskReturned(Exception):
    """A task that must run as long as the node returned."""


class Tasks:
    """Starts the tasks of a node, and ends them all."""

    def __init__(self, log: NodeLog, backoff: Backoff = Backoff()) -> None:
        self._log = log
        self._backoff = backoff
        self._running: set[asyncio.Task[None]] = set()
        self._closed = False

    def keep(self, name: str, run: Run) -> asyncio.Task[None]:
        """Run a task as long as the node: after an error, or when it returns, it starts again."""
        return self._start(name, self._again(name, run))

    def once(self, name: str, run: Run, on_error: Callable[[], None] = lambda: None) -> asyncio.Task[None]:
        """Run a task to its end; an error of it is reported, and ``on_error`` called."""
        return self._start(name, self._guard(name, run, on_error))

    async def persist(self, name: str, step: Callable[[], Awaitable[None]], *errors: type[Exception]) -> None:
        """Carry out a step, again and again until it raises none of those errors."""
        failures = 0
        while True:
            try:
                return await step()
            except errors as error:
                failures += 1
                pause_s = self._backoff.pause_s(failures)
                self._log.problem(name, error, again_in_s=pause_s)
                await asyncio.sleep(pause_s)

    async def close(self) -> None:
        """Cancel all tasks, and wait for their ends."""
        self._closed = True
        while self._running:
            running = tuple(self._running)
            for task in running:
                task.cancel()
            await asyncio.wait(running)

    def _start(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        if self._closed:
            task.cancel()
        return task

    async def _guard(self, name: str, run: Run, on_error: Callable[[], None]) -> None:
        try:
            await run()
        except Exception as error:  # noqa: BLE001 - no caller waits for the task: its error must not be lost
            self._log.problem(name, error)
            on_error()

    async def _again(self, name: str, run: Run) -> None:
        loop, failures = asyncio.get_running_loop(), 0
        while True:
            started = loop.time()
            try:
                await run()
                raise TaskReturned(name)  # noqa: TRY301 - as any other error
            except Exception as error:  # noqa: BLE001 - the task has to go on after any error
                failures = 1 if loop.time() - started >= self._backoff.reset_s else failures + 1
                pause_s = self._backoff.pause_s(failures)
                self._log.problem(name, error, again_in_s=pause_s)
                await asyncio.sleep(pause_s)


class Timer:
    """One time at which a function is called; a later one replaces it. ``clock`` returns Unix seconds."""

    def __init__(self, clock: Callable[[], float], fired: Callable[[], None]) -> None:
        self._clock = clock
        self._fired = fired
        self._at = 0.0
        self._armed_for = 0.0
        self._handle: asyncio.TimerHandle | None = None

    def set(self, at: float) -> None:
        """Call the function at that time."""
        self._at = at
        if self._handle is not None and self._armed_for <= at:
            # It is put off with each message of a stream: the loop's timer is armed anew once it is due.
            return
        self.cancel()
        self._arm()

    def cancel(self) -> None:
        """Call nothing."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _arm(self) -> None:
        self._armed_for = self._at
        self._handle = asyncio.get_running_loop().call_later(max(0.0, self._at - self._clock()), self._due)

    def _due(self) -> None:
        self._handle = None
        if self._clock() < self._at:
            # It was put off, or the loop's clock is not the one that was asked for.
            self._arm()
        else:
            self._fired()
