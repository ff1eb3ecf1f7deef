"""The health of the event loop: how late it runs its timers, and which callback holds it up."""

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Final, Self


async def watch_loop(on_lag: Callable[[float], None], *, interval_s: float = 1.0) -> None:
    """Call ``on_lag`` with the lateness in seconds of a timer set every ``interval_s``, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + interval_s
        await asyncio.sleep(interval_s)
        on_lag(max(0.0, loop.time() - due))


_FRAMES: Final = 6
_CLOSE_S: Final = 2.0


class SlowCallbacks:
    """Reports each callback that holds up this thread's event loop for longer than a limit, within the ``with`` block.

    ``on_slow`` is called in a thread of its own with the seconds it took, at least, and with the innermost frames when
    the limit was reached ("file:line function", the innermost first).
    """

    def __init__(self, limit_s: float, on_slow: Callable[[float, list[str]], None]) -> None:
        self._limit_s = limit_s
        self._on_slow = on_slow
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._answered = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="slow-callbacks", daemon=True)

    def __enter__(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the thread."""
        self._ended.set()
        self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        while not self._ended.wait(self._limit_s / 2):
            self._answered.clear()
            asked = time.monotonic()
            try:
                self._loop.call_soon_threadsafe(self._answered.set)
            except RuntimeError:
                # The loop is closed.
                return
            if self._answered.wait(self._limit_s):
                continue
            frames = _frames(sys._current_frames().get(self._loop_thread))  # noqa: SLF001 - what debuggers use
            while not self._answered.wait(self._limit_s):
                if self._ended.is_set():
                    return
            self._on_slow(time.monotonic() - asked, frames)


def _frames(frame: FrameType | None) -> list[str]:
    found: list[str] = []
    while frame is not None and len(found) < _FRAMES:
        code = frame.f_code
        found.append(f"{code.co_filename}:{frame.f_lineno} {code.co_qualname}")
        frame = frame.f_back
    return found
