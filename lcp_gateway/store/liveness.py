"""Signs of life beside a SQLite file: a lock on a file per process, which the system drops when the process ends."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

_SUFFIX = ".lock"


class OwnerLocks:
    """The folder of lock files of one database."""

    def __init__(self, folder: Path, owner: str) -> None:
        self._folder = folder
        self._owner = owner
        self._held: int | None = None

    def hold(self) -> None:
        """Show that this process lives, until it ends or ``drop`` is called.

        Raises:
            OSError: the lock cannot be taken.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(self._owner)
        unseen = path.with_suffix(".new")
        held = os.open(unseen, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Under its name it is never to be found unlocked, or somebody would clear it away as a dead one's.
            unseen.rename(path)
        except OSError:
            os.close(held)
            raise
        self._held = held

    def drop(self) -> None:
        """Show it no longer. The file goes first, so that nobody finds it unlocked and wonders."""
        if self._held is not None:
            self._path(self._owner).unlink(missing_ok=True)
            os.close(self._held)
            self._held = None

    def is_gone(self, owner: str) -> bool:
        """Tell whether the process of that name has ended."""
        if owner == self._owner:
            return False
        try:
            found = os.open(self._path(owner), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            # Each process locks its file before it writes its first intent, and takes it away only at its end.
            return True
        try:
            fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(found)
        return True

    def forget_gone(self) -> None:
        """Remove the files of processes that have ended."""
        for path in self._folder.glob(f"*{_SUFFIX}"):
            owner = path.name.removesuffix(_SUFFIX)
            with suppress(OSError):
                if self.is_gone(owner):
                    path.unlink(missing_ok=True)

    def _path(self, owner: str) -> Path:
        # Names come from the database: nothing in them may lead out of the folder.
        return self._folder / f"{Path(owner).name}{_SUFFIX}"
