"""The files of a node's database: the database, its lock, its key. All of them are the operator's alone (0600)."""

import fcntl
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

_KEY_BYTES: Final = 32
_OTHERS: Final = 0o077


class StoreUnavailable(OSError):
    """The database cannot be used. The text names the file, says why, and holds nothing of its content."""


class RecordDamaged(Exception):
    """A row does not hold what was written; the text says which kind, and nothing of its content."""


class DatabaseFile:
    """The path of a database, locked: a second node is refused. Made anew where it is missing.

    SQLite goes on writing a file that was deleted or replaced, and what it writes there is lost: so the path is compared with
    the file that was opened.
    """

    def __init__(self, path: Path) -> None:
        # One lock for all names of the file.
        self.path = path.resolve()
        self._lock: int | None = None
        self._opened: tuple[int, int] | None = None

    def lock(self) -> None:
        """Keep other nodes out for as long as this process lives.

        Raises:
            StoreUnavailable: another node has the database open, or its folder cannot be used.
        """
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.path.with_name(f"{self.path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(self.path, error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            if isinstance(error, BlockingIOError):
                raise StoreUnavailable(f"{self.path}: another node uses this database") from None
            raise _unusable(self.path, error) from error
        self._lock = lock

    def unlock(self) -> None:
        """Let another node have it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def new_file(self) -> Path:
        """Return an empty file under another name, in which a database is made before ``install`` puts it in place."""
        path = self.path.with_name(f"{self.path.name}.new")
        for leftover in (path, path.with_name(f"{path.name}-journal")):
            leftover.unlink(missing_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        return path

    def install(self, made: Path) -> None:
        """Put a new database in place: its file is either missing or whole."""
        made.rename(self.path)
        _sync_folder(self.path)

    def opened(self) -> None:
        """Remember which file was opened, and keep others from reading it."""
        for path in (self.path, *(self.path.with_name(f"{self.path.name}-{part}") for part in ("wal", "shm"))):
            with suppress(FileNotFoundError):
                path.chmod(0o600)
        self._opened = self._identity()

    def check(self) -> None:
        """Compare the path with the file that was opened.

        Raises:
            StoreUnavailable: the file was deleted, moved away or replaced.
        """
        try:
            found = self._identity()
        except OSError as error:
            raise _unusable(self.path, error) from error
        if self._opened not in {None, found}:
            raise StoreUnavailable(f"{self.path}: the file was replaced while the node runs: start the node again")

    def _identity(self) -> tuple[int, int]:
        found = self.path.stat()
        return found.st_dev, found.st_ino


def read_key(path: Path) -> bytes | None:
    """Return the key in a file; None where there is none.

    Raises:
        StoreUnavailable: the file cannot be read, holds no key, or others may read it.
    """
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            mode, text = os.fstat(file.fileno()).st_mode, file.read(_KEY_BYTES * 4)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(path, error) from error
    if mode & _OTHERS:
        raise StoreUnavailable(f"{path}: other users may read this key: chmod 600 {path}")
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise StoreUnavailable(f"{path}: damaged: a key is {_KEY_BYTES * 2} hex digits")
    return key


def make_key(path: Path) -> bytes:
    """Make a key file, and return its key once it is durable.

    Raises:
        StoreUnavailable: it cannot be written.
    """
    key = secrets.token_bytes(_KEY_BYTES)
    unseen = path.with_name(f"{path.name}.new")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        unseen.unlink(missing_ok=True)
        with os.fdopen(os.open(unseen, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(f"{key.hex()}\n")
            file.flush()
            os.fsync(file.fileno())
        unseen.rename(path)
        _sync_folder(path)
    except OSError as error:
        raise _unusable(path, error) from error
    return key


def _sync_folder(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _unusable(path: Path, error: OSError) -> StoreUnavailable:
    return StoreUnavailable(f"{path}: {os.strerror(error.errno or 0).lower()}")
