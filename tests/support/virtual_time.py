"""An event loop whose clock jumps to the next timer as soon as nothing else is to be done: hours pass in no time."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

START = 1_800_000_000
"""Unix seconds at which every such loop begins."""


class _Selector(selectors.DefaultSelector):
    """Waits for no time: what it was asked to wait for is added to the loop's clock."""

    now = 0.0

    def select(self, timeout=None):
        ready = super().select(0)
        if not ready and timeout is None:
            raise AssertionError("the loop waits for nothing: every task hangs")
        if not ready:
            self.now += max(timeout, 0)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop for tests without sockets or threads. ``unix_time`` is the clock of the programs in it."""

    def __init__(self):
        self._virtual = _Selector()
        super().__init__(self._virtual)
        # As fine as the clock: a timer is due when its time has come.
        self._clock_resolution = 1e-6

    def time(self):
        return self._virtual.now

    def unix_time(self):
        return START + self._virtual.now


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a loop of its own, and end what it leaves."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


def unix_time() -> float:
    """Return the time of the running loop in Unix seconds."""
    return asyncio.get_running_loop().unix_time()
