"""Standard output and error of a gateway: queued, so that no writer waits, and in a file that rotates itself.

A pipe that is not read, a stopped terminal or a hanging disk would otherwise block the event loop in a log call. Lines
that find the queue full are dropped and counted. A descriptor that can be written to without waiting, a pipe or a
socket, gets a line at once where none is queued; the thread writes the others.

Libraries written in C write to the file descriptors themselves, from their own threads. Where a descriptor is a pipe, it
is replaced by one to the same pipe that does not block, so that their lines are lost instead. The file of a process in the
background stands behind the descriptors, so it gets all output: log lines, tracebacks, and messages of C libraries.
"""

import contextlib
import errno
import io
import os
import queue
import re
import select
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TextIO, cast

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
        """``on_lost`` gets the number of lines lost, once lines can be written again; from the thread.

        ``write_now`` writes as much as the descriptor takes without waiting, and returns the number of bytes.
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
            # After a loss the thread reports it. It holds its bytes until they are written: lines keep their order.
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
            # It is full, or broken: the thread waits, or gets the error.
            return 0

    def close(self, timeout_s: float = _CLOSE_TIMEOUT_S) -> None:
        """Write the queued lines, within a time limit; later ones are lost."""
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
    """A text stream like ``sys.stderr`` that queues its lines."""

    def __init__(self, lines: LineQueue) -> None:
        super().__init__()
        self.buffer = _QueuedBytes(lines)
        self._lines = lines

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Always UTF-8: characters that cannot be encoded are escaped."""
        return "utf-8"

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, text: str, /) -> int:
        """Queue a text."""
        self._lines.put(text.encode("utf-8", "backslashreplace"))
        return len(text)

    def fileno(self) -> int:
        """Return the descriptor that the text is written to."""
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
    """Send standard output and error through queues for the block, and write the queued lines at its end."""
    for descriptor in (1, 2):
        _unblock(descriptor)
    streams = StandardStreams(
        LineQueue(1, write_now=writer_without_waiting(1)),
        LineQueue(2, on_lost=_log_lost, write_now=writer_without_waiting(2)),
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


def _log_lost(lines: int) -> None:
    from lcp_gateway.telemetry.logs import get_logger  # noqa: PLC0415 - commands that follow a log need none

    get_logger("log").warning("log lines were lost: nothing read them", lines=lines)


def _unblock(descriptor: int) -> None:
    """Have a descriptor that leads to a pipe lead there without blocking.

    It is opened again, so that other processes with the same pipe are not affected.
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
    """Return a function that writes as much as a descriptor takes at once; None where that is not known, as of a disk."""
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


# -- the file of a process in the background --------------------------------------------------------

STANDARD_STREAMS = (1, 2)
"""Standard output and standard error."""

_CHECK_INTERVAL_S = 1.0


def open_log(path: Path) -> int:
    """Open a log to append to it, created for its owner alone where it is missing; return the descriptor.

    Raises:
        OSError: it cannot be written, or is not a regular file.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    handle = os.open(path, flags, 0o600)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is not a regular file")
    os.set_blocking(handle, True)
    return handle


def rotated(path: Path) -> Sequence[Path]:
    """Return the rotated files of a log, the newest (``.1``) first."""
    pattern = re.compile(re.escape(path.name) + r"\.([1-9][0-9]{0,8})")
    try:
        names = [one.name for one in path.parent.iterdir()]
    except OSError:
        return []
    found = {int(matched[1]): name for name in names if (matched := pattern.fullmatch(name))}
    return [path.parent / name for _, name in sorted(found.items())]


class LogFile:
    """Rotates the log of this process while the ``with`` block lasts.

    ``streams`` are the descriptors that lead to it already. At ``max_bytes`` (0: never) it becomes ``.1``, the file of
    that name ``.2``, and so on; the newest ``keep`` of them are kept. A log that was moved or deleted is created again.
    A descriptor is switched to the new file at once, so no line falls between two files.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int,
        keep: int,
        streams: Sequence[int] = STANDARD_STREAMS,
        interval_s: float = _CHECK_INTERVAL_S,
        on_moved: Callable[[], None] = lambda: None,
    ) -> None:
        """``on_moved`` is called, from a thread, when another file has the log's name: other processes may write to it too."""
        self._on_moved = on_moved
        self._path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._streams = streams
        self._interval_s = interval_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-file", daemon=True)

    def __enter__(self) -> Self:
        """Start the thread: an event loop that hangs must not fill the disk."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the thread; the descriptors still lead to the log."""
        self._ended.set()
        self._thread.join()

    def rotate_if_due(self) -> None:
        """Rotate the log if it is due.

        Raises:
            OSError: it cannot be rotated now; lines go to the old file.
        """
        current = os.fstat(self._streams[-1])
        try:
            named = self._path.lstat()
        except FileNotFoundError:
            named = None
        if named is None or not os.path.samestat(named, current):
            self._reopen()
        elif self._max_bytes and current.st_size >= self._max_bytes:
            self._rename()
            self._reopen()

    def _rename(self) -> None:
        """Rename the log and the rotated files to their next names, and delete those that are not kept."""
        old = [self._path, *rotated(self._path)]
        for path in old[self._keep :]:
            path.unlink()
        kept = old[: self._keep]
        for number, path in reversed(list(enumerate(kept, start=1))):
            path.replace(self._path.with_name(f"{self._path.name}.{number}"))

    def _reopen(self) -> None:
        handle = open_log(self._path)
        try:
            for stream in self._streams:
                os.dup2(handle, stream)
        finally:
            os.close(handle)
        self._on_moved()

    def _run(self) -> None:
        while not self._ended.wait(self._interval_s):
            # A full disk, or a folder without permission: tried again, and lines go to the old file meanwhile.
            with contextlib.suppress(OSError):
                self.rotate_if_due()
