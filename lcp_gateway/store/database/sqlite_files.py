"""The files of a SQLite journal: the database itself, the secret and the identity beside it, and a lock file of each process.

SQLite goes on reading and writing a file that was deleted, moved away or replaced, since it has it open: what it writes
there is gone with the process, and other processes and the next start see another journal. So the path is compared with
what was opened, before each transaction: a system call or two, in the thread that does the transaction.
"""

import fcntl
import os
import secrets
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeAlias

from lcp_gateway.store.database.engines import DatabaseUnavailable

ID_SUFFIX: Final = ".identity"
"""Ends the name of the file that holds the id of the journal that this place had first."""
SECRET_SUFFIX: Final = ".secret"  # noqa: S105 - the end of a file's name
"""Ends the name of the file that holds the secret that repeat keys are hashed with."""

_SECRET_BYTES = 32
_WRITABLE = 0o222
# How often the folder and the index of the write-ahead log are checked.
_SELDOM_S = 1.0

_Inode: TypeAlias = tuple[int, int]


class JournalFile:
    """The file, as it was when it was opened.

    ``trouble`` is the reason why the last check found that it cannot be used; None where it can.
    """

    def __init__(self, path: Path) -> None:
        self._path = os.fspath(path)
        self._log = f"{self._path}-wal"
        self._index = f"{self._path}-shm"
        self._folder = os.fspath(path.parent)
        self._opened: _Inode | None = None
        self._opened_folder: _Inode | None = None
        # The write-ahead log and its index that this process has open, and its connections.
        self._beside: tuple[_Inode | None, _Inode | None] = (None, None)
        self._connections: set[object] = set()
        self._lock = threading.Lock()
        self._look_again_at = 0.0
        self.trouble: str | None = None

    def opened(self) -> None:
        """Record the identity of the file, now that the journal has its tables and a connection.

        Raises:
            OSError: the file is missing.
        """
        file, folder = _stat(self._path), _stat(self._folder)
        self._opened = (file.st_dev, file.st_ino)
        self._opened_folder = (folder.st_dev, folder.st_ino)
        self._beside = (_inode(self._log), _inode(self._index))

    def connected(self, connection: object) -> None:
        """Record that a connection has the file, its log and its index open."""
        with self._lock:
            if not self._connections:
                # SQLite creates the log for the first connection, and deletes it with the last.
                self._beside = (_inode(self._log), _inode(self._index))
            self._connections.add(connection)

    def disconnected(self, connection: object) -> None:
        """Record that a connection is about to be closed."""
        with self._lock:
            self._connections.discard(connection)
            if not self._connections:
                self._beside = (None, None)

    def check(self) -> None:
        """Compare the files at the path with those that this process has open.

        Raises:
            DatabaseUnavailable: it is not the journal that was opened, or is read-only now.
        """
        if self._opened is None:
            return
        self.trouble = self._find_trouble(self._opened)
        if self.trouble is not None:
            raise DatabaseUnavailable(self.trouble)

    def _find_trouble(self, opened: _Inode) -> str | None:
        try:
            found = _stat(self._path)
        except OSError:
            return "its file was deleted or moved"
        if (found.st_dev, found.st_ino) != opened:
            return "its file was replaced by another one"
        if not found.st_mode & _WRITABLE:
            return "its file was made read-only"
        log, index = self._beside
        if log is not None and _inode(self._log) != log:
            return "its write-ahead log was deleted or replaced"
        now = time.monotonic()
        # While there is trouble, every check is a whole one.
        if now < self._look_again_at and self.trouble is None:
            return None
        self._look_again_at = now + _SELDOM_S
        if index is not None and _inode(self._index) != index:
            return "the index of its write-ahead log was deleted or replaced"
        return self._find_trouble_of_folder()

    def _find_trouble_of_folder(self) -> str | None:
        try:
            folder = _stat(self._folder)
        except OSError:
            return "its folder was deleted or moved"
        if (folder.st_dev, folder.st_ino) != self._opened_folder:
            return "its folder was replaced by another one"
        if not folder.st_mode & _WRITABLE:
            return "its folder was made read-only"
        return None


def read_secret(path: Path) -> bytes:
    """Return the secret beside a journal, created the first time. The caller keeps other processes out.

    Raises:
        OSError: it can be neither read nor created.
    """
    file = path.with_name(path.name + SECRET_SUFFIX)
    with suppress(FileNotFoundError):
        if len(secret := file.read_bytes()) == _SECRET_BYTES:
            return secret
    secret = secrets.token_bytes(_SECRET_BYTES)
    _write_whole(file, secret, like=path)
    return secret


def why_replaced(path: Path, journal_id: bytes) -> str | None:
    """Return why the journal at a path is not the one that was there before; None where it is, or is the first.

    The id of the first is kept in a file beside it, until an operator deletes that file. The caller keeps other processes
    out.

    Raises:
        OSError: it can be neither read nor written.
    """
    file = path.with_name(path.name + ID_SUFFIX)
    with suppress(FileNotFoundError, ValueError):
        if bytes.fromhex(file.read_text("ascii")) == journal_id:
            return None
        return (
            "another journal was kept here before: its accounts, purchases and budgets are not in this one. "
            f"Put that file back, or delete {file} to go on with this one"
        )
    _write_whole(file, f"{journal_id.hex()}\n".encode(), like=path)
    return None


def _write_whole(file: Path, content: bytes, *, like: Path) -> None:
    """Write a file that appears whole, with the owner of another file: an administrator may run the first command here."""
    unseen = file.with_name(f"{file.name}.new")
    with os.fdopen(os.open(unseen, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
        with suppress(PermissionError):
            owner = like.stat()
            os.fchown(stream.fileno(), owner.st_uid, owner.st_gid)
    unseen.rename(file)


def _stat(path: str) -> os.stat_result:
    # Called before every transaction: a path object would take several times as long as the call.
    return os.stat(path)  # noqa: PTH116 - see above


def _inode(path: str) -> _Inode | None:
    try:
        found = _stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


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
            # Under its name it is never unlocked, or another process would remove it as that of a dead one.
            unseen.rename(path)
        except OSError:
            os.close(held)
            raise
        self._held = held

    def drop(self) -> None:
        """Release the lock. The file is deleted first, so that no process finds it unlocked."""
        if self._held is not None:
            self._path(self._owner).unlink(missing_ok=True)
            os.close(self._held)
            self._held = None

    def is_gone(self, owner: str) -> bool:
        """Return whether the process of that name has ended."""
        if owner == self._owner:
            return False
        try:
            found = os.open(self._path(owner), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            # Each process locks its file before it writes its first intent, and deletes it only at its end.
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
        # Names come from the database: none may lead out of the folder.
        return self._folder / f"{Path(owner).name}{_SUFFIX}"
