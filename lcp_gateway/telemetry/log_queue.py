"""Standard output and error that never make a writer wait: what is written goes through a bounded queue on a thread.

A pipe that is not read, a terminal that was stopped or a disk that hangs would otherwise stop the event loop in the
middle of a log line. Lines that find the queue full are dropped and counted. A descriptor that can be written to without
waiting, a pipe or a socket, gets a line at once where none is queued: the thread is woken for those that do not fit.

Libraries written in C write to the file descriptors themselves, from their own threads. Where a descriptor is a pipe, it is
replaced by one to the same pipe that does not block, so that their lines are lost instead.
"""

import contextlib
import io
import os
import queue
import select
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TextIO, cast

from lcp_gateway.telemetry.logs import get_logger

_MAX_QUEUED_BYTES: Final = 2**20
_WRITE_BYTES: Final = 64 * 1024
_CLOSE_TIMEOUT_S: Final = 1.0
_POLL_MS: Final = 1_000


class LineQueue:
    """A bounded queue of lines before one file descriptor, and the thread that writes them."""

    def __init__(
        self,
        descriptor: int,
        *,
        max_bytes: int = _MAX_QUEUED_BYTES,
        on_lost: Callable[[int], None] = lambda _lines: None,
        write_now: Callable[[bytes], int] | None = None,
    ) -> None:
        """``on_lost`` is told how many lines were lost, once lines can be written again; from the thread.

        ``write_now`` writes to the descriptor what it takes without waiting, and returns how many bytes those were.
        """
        self.descriptor = descriptor
        self._write_now = write_now
        self._max_bytes = max_bytes
        self._on_lost = on_lost
        # Reentrant: a signal handler or a finalizer may write while this thread is about to.
        self._guard = threading.RLock()
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._queued_bytes = 0
        self._lost = 0
        self._told = 0
        self._closed = False
        self._thread: threading.Thread | None = None

    @property
    def lost(self) -> int:
        """How many lines were lost so far."""
        return self._lost

    def put(self, data: bytes) -> None:
        """Queue whole lines; drop them where there is no room. Never waits and never raises."""
        with self._guard:
            if self._closed or self._queued_bytes + len(data) > self._max_bytes:
                self._lost += _lines(data)
                return
            # Once lines were lost the thread is to say so. It holds its bytes until they are written: lines keep their order.
            is_first = not self._queued_bytes and self._lost == self._told
            self._queued_bytes += len(data)
            if is_first and self._write_now is not None:
                written = self._try_now(self._write_now, data)
                self._queued_bytes -= written
                if written == len(data):
                    return
                data = data[written:]
            if self._thread is None:
                self._start()
        self._queue.put(data)

    @staticmethod
    def _try_now(write: Callable[[bytes], int], data: bytes) -> int:
        try:
            return write(data)
        except OSError:
            # It is full, or broken: the thread waits, or finds out.
            return 0

    def close(self, timeout_s: float = _CLOSE_TIMEOUT_S) -> None:
        """Write what is queued, for so long at most; what comes later is lost."""
        with self._guard:
            self._closed, thread = True, self._thread
        if thread is not None:
            self._queue.put(None)
            thread.join(timeout_s)

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name=f"log-{self.descriptor}", daemon=True)
        self._thread = thread
        try:
            thread.start()
        except RuntimeError:
            # No thread can be started any more: the interpreter is ending.
            self._closed = True

    def _run(self) -> None:
        while (data := self._queue.get()) is not None:
            batch, size = [data], len(data)
            ended = False
            while size < _WRITE_BYTES:
                try:
                    more = self._queue.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    ended = True
                    break
                batch.append(more)
                size += len(more)
            written = self._write(b"".join(batch))
            with self._guard:
                self._queued_bytes -= size
                if not written:
                    self._lost += sum(map(_lines, batch))
                lost = self._lost - self._told
                if written and lost:
                    self._told = self._lost
            if written and lost:
                self._on_lost(lost)
            if ended:
                return

    def _write(self, data: bytes) -> bool:
        """Write it all, however long the other end takes; return whether it could be written."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self.descriptor, view) :]
            except BlockingIOError:
                self._wait()
            except OSError:
                return False
        return True

    def _wait(self) -> None:
        with contextlib.suppress(OSError):
            poll = select.poll()
            poll.register(self.descriptor, select.POLLOUT)
            poll.poll(_POLL_MS)


class _QueuedBytes(io.RawIOBase):
    """The binary side of a queued stream."""

    def __init__(self, lines: LineQueue) -> None:
        super().__init__()
        self._lines = lines

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        """Queue the bytes."""
        taken = bytes(cast("bytes", data))
        self._lines.put(taken)
        return len(taken)

    def fileno(self) -> int:
        return self._lines.descriptor

    def isatty(self) -> bool:
        with contextlib.suppress(OSError):
            return os.isatty(self._lines.descriptor)
        return False


class QueuedStream(io.TextIOBase):
    """A text stream like ``sys.stderr`` that queues what is written."""

    def __init__(self, lines: LineQueue) -> None:
        super().__init__()
        self.buffer = _QueuedBytes(lines)
        self._lines = lines

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Always UTF-8: what cannot be encoded is escaped."""
        return "utf-8"

    def writable(self) -> bool:
        """Say that it can be written to."""
        return True

    def write(self, text: str, /) -> int:
        """Queue a text."""
        self._lines.put(text.encode("utf-8", "backslashreplace"))
        return len(text)

    def fileno(self) -> int:
        """Return the descriptor that the text goes to in the end."""
        return self._lines.descriptor

    def isatty(self) -> bool:
        """Return whether that is a terminal."""
        return self.buffer.isatty()


@dataclass(frozen=True, slots=True)
class StandardStreams:
    """The queues before standard output and standard error."""

    output: LineQueue
    error: LineQueue

    def lost_lines(self) -> int:
        """Return how many lines were lost of both."""
        return self.output.lost + self.error.lost


@contextlib.contextmanager
def queued_standard_streams() -> Iterator[StandardStreams]:
    """Send standard output and error through queues for the block, and write what is queued at its end."""
    for descriptor in (1, 2):
        _unblock(descriptor)
    streams = StandardStreams(
        LineQueue(1, write_now=writer_without_waiting(1)),
        LineQueue(2, on_lost=_tell_lost, write_now=writer_without_waiting(2)),
    )
    before = sys.stdout, sys.stderr
    for stream in before:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    sys.stdout = cast("TextIO", QueuedStream(streams.output))
    sys.stderr = cast("TextIO", QueuedStream(streams.error))
    try:
        yield streams
    finally:
        sys.stdout, sys.stderr = before
        streams.output.close()
        streams.error.close()


def _tell_lost(lines: int) -> None:
    get_logger("log").warning("log lines were lost: nothing read them", lines=lines)


def _unblock(descriptor: int) -> None:
    """Have a descriptor that leads to a pipe lead there without blocking.

    It is opened anew, so that other processes with the same pipe go on as they were.
    """
    try:
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            return
        opened = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        # No /proc, or the pipe has no reader: its writers get an error instead of waiting.
        return
    try:
        os.dup2(opened, descriptor)
    finally:
        os.close(opened)


def writer_without_waiting(descriptor: int) -> Callable[[bytes], int] | None:
    """Return what writes to a descriptor as much as it takes at once; None where that cannot be known, as of a disk."""
    try:
        found = os.fstat(descriptor)
        if stat.S_ISSOCK(found.st_mode):
            # The service manager's journal. Its socket may be shared, and so is not switched to another mode.
            stream = socket.socket(fileno=os.dup(descriptor))
            return lambda data: stream.send(data, socket.MSG_DONTWAIT)
        is_null = stat.S_ISCHR(found.st_mode) and found.st_rdev == os.stat(os.devnull).st_rdev  # noqa: PTH116 - its device
        if is_null or (stat.S_ISFIFO(found.st_mode) and not os.get_blocking(descriptor)):
            return lambda data: os.write(descriptor, data)
    except OSError:
        return None
    return None


def _lines(data: bytes) -> int:
    return max(data.count(b"\n"), 1)
