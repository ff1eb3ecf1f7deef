"""Processes of this machine: told apart by more than their number, and signalled only when they are who we think."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PROC = Path("/proc")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Places in /proc/PID/stat, counted from behind the program's name: that may hold blanks and brackets.
_STATE, _PARENT, _START = 0, 1, 19
_DEAD = frozenset("ZXx")
_PAUSE_S = 0.05
_PS_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Process:
    """A process: the system uses its number again, but never together with the time of its start.

    ``started`` is that time as the system tells it, with the boot that it counts from. Only equality means anything.
    """

    pid: int
    started: str


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the system says of a process that runs."""

    process: Process
    parent: int
    user: int


def find_process(pid: int) -> Process | None:
    """Give the process of this user that has the number now, ``None`` where none runs; a zombie does not run."""
    seen = _look(pid)
    return seen.process if seen is not None and seen.user == os.geteuid() else None


def is_running(process: Process) -> bool:
    """Tell whether it, and not another with its number, runs."""
    return find_process(process.pid) == process


def children_of(process: Process) -> Sequence[Process]:
    """Give the processes of this user that it started and that still run."""
    if not is_running(process):
        return []
    found = (_look(pid) for pid in _all_pids())
    mine = (seen for seen in found if seen is not None and seen.user == os.geteuid())
    return [seen.process for seen in mine if seen.parent == process.pid]


def send(process: Process, number: int) -> bool:
    """Send it a signal; false where it is gone. No other process ever gets it.

    Raises:
        OSError: the system does not allow it.
    """
    try:
        with _handle(process.pid) as kill:
            # With a handle that is held, the number cannot become another's between this look and the signal.
            if not is_running(process):
                return False
            kill(number)
    except ProcessLookupError:
        return False
    return True


def wait_gone(processes: Sequence[Process], timeout_s: float) -> Sequence[Process]:
    """Wait until all of them are gone, and give those that are not by then."""
    deadline = time.monotonic() + timeout_s
    while (left := [one for one in processes if is_running(one)]) and time.monotonic() < deadline:
        time.sleep(_PAUSE_S)
    return left


@contextlib.contextmanager
def _handle(pid: int) -> Iterator[Callable[[int], None]]:
    """Hold a process by more than its number, where the system can, and give what sends it a signal."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except (AttributeError, OSError):
        yield lambda number: os.kill(pid, number)
        return
    try:
        yield lambda number: signal.pidfd_send_signal(handle, number)
    finally:
        os.close(handle)


def _look(pid: int) -> _Seen | None:
    if pid <= 0:
        return None
    return _look_in_proc(pid) if _has_proc() else _ask_ps(pid)


def _has_proc() -> bool:
    return (_PROC / "self" / "stat").exists()


def _look_in_proc(pid: int) -> _Seen | None:
    folder = _PROC / str(pid)
    try:
        told = (folder / "stat").read_text(encoding="utf-8", errors="replace")
        user = folder.stat().st_uid
    except OSError:
        return None
    fields = told.rpartition(")")[2].split()
    if len(fields) <= _START or fields[_STATE] in _DEAD:
        return None
    return _Seen(Process(pid, f"{_boot_id()} {fields[_START]}"), int(fields[_PARENT]), user)


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _ask_ps(pid: int) -> _Seen | None:
    """Do without /proc, as on macOS: its ps tells the start as a date, which no reboot repeats."""
    told = _ps("-o", "stat=,ppid=,uid=,lstart=", "-p", str(pid)).split(maxsplit=3)
    if len(told) < 4 or told[0][0] in _DEAD:  # noqa: PLR2004 - as many as were asked for
        return None
    return _Seen(Process(pid, " ".join(told[3].split())), int(told[1]), int(told[2]))


def _all_pids() -> Sequence[int]:
    names: Any = (path.name for path in _PROC.iterdir()) if _has_proc() else None
    return [int(name) for name in names or _ps("-A", "-o", "pid=").split() if name.isdigit()]


def _ps(*arguments: str) -> str:
    try:
        return subprocess.run(  # noqa: S603 - nothing of it comes from outside
            ["/bin/ps", *arguments],
            capture_output=True,
            text=True,
            timeout=_PS_TIMEOUT_S,
            check=False,
            env={"LC_ALL": "C", "TZ": "UTC"},
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
