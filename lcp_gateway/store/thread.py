"""One thread that does blocking work in order, with as little ceremony a call as there can be."""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_Job = tuple[Callable[[], Any], asyncio.AbstractEventLoop, asyncio.Future[Any], bool]


class Worker:
    """A thread of its own. Cheaper than an executor: no locks and no future of the other kind for each call."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        # A daemon, so that a disk which hangs cannot keep the process from ending.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(self, work: Callable[[], T], *, unless_left: bool = False) -> T:
        """Do it in the thread; return what it returns and raise what it raises.

        A caller that leaves does not stop it, unless ``unless_left`` is set: then a work that has not begun is left out.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._jobs.put((work, loop, done, unless_left))
        return await done

    async def close(self, timeout_s: float) -> None:
        """Finish what waits, for at most so long, and end the thread."""
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join, timeout_s)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, loop, done, unless_left = job
            if unless_left and done.cancelled():
                continue
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to the caller
                _tell(loop, _fail, done, error)
            else:
                _tell(loop, _succeed, done, result)
            # Nothing of a finished job is held on to while the next is waited for.
            del job, work, loop, done


def _tell(loop: asyncio.AbstractEventLoop, how: Callable[..., None], *arguments: object) -> None:
    try:
        loop.call_soon_threadsafe(how, *arguments)
    except RuntimeError:
        # The loop is closed: nobody waits any more.
        return


def _succeed(done: asyncio.Future[T], result: T) -> None:
    if not done.done():
        done.set_result(result)


def _fail(done: asyncio.Future[Any], error: BaseException) -> None:
    if not done.done():
        done.set_exception(error)
