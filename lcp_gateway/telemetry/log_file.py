"""The log of a process in the background: standard output and error, in a file that the process itself rotates.

The file stands behind the file descriptors, so it takes whatever is written to them: log lines, tracebacks, and the last
words of a library written in C. A descriptor is turned over to the new file at once, so no line falls between two files.
"""

import contextlib
import errno
import os
import re
import stat
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

STANDARD_STREAMS = (1, 2)
"""Standard output and standard error."""

_CHECK_INTERVAL_S = 1.0


def open_log(path: Path) -> int:
    """Open a log to append to it, made where it is missing and for its owner alone; gives the descriptor.

    Raises:
        OSError: it cannot be written, or is something else than a file.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    handle = os.open(path, flags, 0o600)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no file")
    os.set_blocking(handle, True)
    return handle


def rotated(path: Path) -> Sequence[Path]:
    """Give the rotated logs of a log that are there, the newest (``.1``) first."""
    pattern = re.compile(re.escape(path.name) + r"\.([1-9][0-9]{0,8})")
    try:
        names = [one.name for one in path.parent.iterdir()]
    except OSError:
        return []
    found = {int(matched[1]): name for name in names if (matched := pattern.fullmatch(name))}
    return [path.parent / name for _, name in sorted(found.items())]


class LogFile:
    """Keeps the log of this process below a size while the ``with`` block lasts.

    ``streams`` are the descriptors that lead to it already. Once it has ``max_bytes`` (0: never) it becomes ``.1``, what
    was that ``.2``, and so on; the newest ``keep`` of them are kept. A log that somebody else took away is begun anew.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int,
        keep: int,
        streams: Sequence[int] = STANDARD_STREAMS,
        interval_s: float = _CHECK_INTERVAL_S,
    ) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._streams = streams
        self._interval_s = interval_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-file", daemon=True)

    def __enter__(self) -> Self:
        """Begin to look after it, in a thread of its own: a loop that hangs must not fill the disk."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it; the descriptors go on leading to the log."""
        self._ended.set()
        self._thread.join()

    def tend(self) -> None:
        """Rotate the log if it is time to.

        Raises:
            OSError: that is not possible now; the log goes on where it was.
        """
        current = os.fstat(self._streams[-1])
        try:
            named = self._path.lstat()
        except FileNotFoundError:
            named = None
        if named is None or not os.path.samestat(named, current):
            self._turn_over()
        elif self._max_bytes and current.st_size >= self._max_bytes:
            self._make_room()
            self._turn_over()

    def _make_room(self) -> None:
        """Give the log and each of the rotated ones the next name, but for those that are not kept."""
        old = [self._path, *rotated(self._path)]
        for path in old[self._keep :]:
            path.unlink()
        kept = old[: self._keep]
        for number, path in reversed(list(enumerate(kept, start=1))):
            path.replace(self._path.with_name(f"{self._path.name}.{number}"))

    def _turn_over(self) -> None:
        handle = open_log(self._path)
        try:
            for stream in self._streams:
                os.dup2(handle, stream)
        finally:
            os.close(handle)

    def _run(self) -> None:
        while not self._ended.wait(self._interval_s):
            # A full disk, or a folder that is not ours any more: it is tried again, and lines go where they went.
            with contextlib.suppress(OSError):
                self.tend()
