"""The PID file of a gateway in the background: written as a whole, and trusted only while its process is the one that it names."""

import contextlib
import enum
import errno
import os
import stat
import tempfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from lcp_gateway.cli.output import user_name
from lcp_gateway.cli.service.processes import Process, find_process

EMPTY = "it is empty"
"""The problem of an empty PID file, as after a full disk."""

_MAX_BYTES = 64 * 2**10


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceRecord:
    """How a gateway was started in the background.

    ``url`` is where it is reached from this machine. ``flags`` go by the names of the settings; they and ``config`` are
    as they were typed in ``folder``. ``variables`` are the names of the environment variables with its settings.
    """

    process: Process
    address: str
    url: str
    version: str
    since: datetime
    log_file: Path
    folder: Path
    config: Path | None
    flags: dict[str, str | bool]
    variables: tuple[str, ...]


class Condition(enum.StrEnum):
    """Whether the process of a PID file runs."""

    RUNNING = "running"
    STALE = "stale"
    """It is left over: no process, or another one, has the number that it names."""
    FOREIGN = "foreign"
    """It is another user's, and is not trusted."""


@dataclass(frozen=True, slots=True)
class PidFile:
    """A PID file. ``problem`` says why it is not that of a running gateway."""

    path: Path
    condition: Condition
    record: InstanceRecord | None = None
    problem: str = ""

    @property
    def running(self) -> InstanceRecord | None:
        """The gateway, if it runs."""
        return self.record if self.condition is Condition.RUNNING else None


_RECORD = TypeAdapter(InstanceRecord)


def read_pid_file(path: Path) -> PidFile | None:
    """Read a PID file, and find its process; None where there is no file."""
    try:
        text, user = _read(path)
    except FileNotFoundError:
        return None
    except PermissionError:
        return PidFile(path, Condition.FOREIGN, problem="it cannot be read")
    except OSError:
        return PidFile(path, Condition.STALE, problem="it is not a regular file")
    if user != os.geteuid():
        return PidFile(path, Condition.FOREIGN, problem=f"it belongs to {user_name(user)}")
    if not text.strip():
        return PidFile(path, Condition.STALE, problem=EMPTY)
    try:
        record = _RECORD.validate_json(text)
    except ValidationError:
        return PidFile(path, Condition.STALE, problem="its content is not valid")
    process = record.process
    match find_process(process.pid):
        case None:
            problem = f"there is no process {process.pid} of yours any more"
            return PidFile(path, Condition.STALE, record, problem)
        case found if found != process:
            problem = f"the process {process.pid} is another one, started at another time"
            return PidFile(path, Condition.STALE, record, problem)
    return PidFile(path, Condition.RUNNING, record)


def write_pid_file(path: Path, record: InstanceRecord) -> None:
    """Write a PID file as a whole or not at all, for its owner alone.

    Raises:
        OSError: it cannot be written.
    """
    # A file that mkstemp makes is its owner's alone.
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_RECORD.dump_json(record, indent=1) + b"\n")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_pid_file(path: Path, process: Process) -> None:
    """Remove the PID file of a process, unless it names another by now."""
    found = read_pid_file(path)
    if found is not None and found.record is not None and found.record.process == process:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _read(path: Path) -> tuple[bytes, int]:
    """Return the content of a file and its owner; a link is not followed, and a pipe is not waited for."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        return file.read(_MAX_BYTES), found.st_uid
