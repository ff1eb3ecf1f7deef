"""One command at a time for one gateway: a lock that the system lets go of when its holder ends, however it ends."""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_PAUSE_S = 0.05
_TELL_AFTER_S = 1.0


class StillLocked(Exception):
    """Somebody else has held the lock for all of the time that there was."""


@contextlib.contextmanager
def locked(path: Path, timeout_s: float, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a lock file for the block; it is removed after it. ``waiting`` is called once when that takes a while.

    Raises:
        StillLocked: it was not to be had in ``timeout_s``.
        OSError: there can be no such file.
    """
    began, told = time.monotonic(), False
    while (handle := _take(path)) is None:
        waited_s = time.monotonic() - began
        if waited_s > timeout_s:
            raise StillLocked
        if waited_s > _TELL_AFTER_S and not told:
            waiting()
            told = True
        time.sleep(_PAUSE_S)
    try:
        yield
    finally:
        # Removed while it is held: who waits for it sees that the name is another file's by then, or nobody's.
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(handle)


def _take(path: Path) -> int | None:
    """Take the lock, and give its handle; ``None`` where it is held."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), path.lstat()):
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None
