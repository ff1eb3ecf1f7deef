"""Processes of this machine: identified by more than their number, and signalled only while they are still the same ones."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class Process:
    """A process: the system uses its number again, but never together with the time of its start.

    ``started`` is only ever compared. It stays the same when the clock is set, unlike psutil's ``create_time``.
    """

    pid: int
    started: str


def find_process(pid: int) -> Process | None:
    """Return the process of this user that has the number now, None where none runs; a zombie does not run."""
    import psutil  # noqa: PLC0415 - 20 ms that a gateway in the foreground does not pay

    if pid <= 0:
        return None
    try:
        found = psutil.Process(pid)
        with found.oneshot():
            dead = found.status() in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}
            if dead or found.uids().effective != os.geteuid():
                return None
            return Process(pid, _start_of(found))
    except psutil.Error:
        return None


def is_running(process: Process) -> bool:
    """Return whether it, and not another with its number, runs."""
    return find_process(process.pid) == process


def children_of(process: Process) -> Sequence[Process]:
    """Return the processes of this user that it started and that still run."""
    import psutil  # noqa: PLC0415 - as above

    if not is_running(process):
        return []
    try:
        children = psutil.Process(process.pid).children()
    except psutil.Error:
        return []
    return [found for child in children if (found := find_process(child.pid)) is not None]


def send(process: Process, number: int) -> bool:
    """Send it a signal and return True, or False where it is gone. No other process ever gets the signal.

    Raises:
        OSError: the system does not allow it.
    """
    try:
        with _handle(process.pid) as kill:
            # While a handle is held, the number cannot become another's between this check and the signal. psutil,
            # which signals by number, cannot promise that.
            if not is_running(process):
                return False
            kill(number)
    except ProcessLookupError:
        return False
    return True


def wait_gone(processes: Sequence[Process], timeout_s: float) -> Sequence[Process]:
    """Wait until all of them are gone, and return those that are not by then."""
    deadline = time.monotonic() + timeout_s
    while (left := [one for one in processes if is_running(one)]) and time.monotonic() < deadline:
        time.sleep(_PAUSE_S)
    return left


@contextlib.contextmanager
def _handle(pid: int) -> Iterator[Callable[[int], None]]:
    """Hold a process by more than its number, where the system can; yields the function that sends it a signal."""
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


def _start_of(process: "psutil.Process") -> str:
    """Return the start of a process in a form that neither a reboot nor a change of the clock confuses with another."""
    import psutil  # noqa: PLC0415 - as above

    if not psutil.LINUX:
        return f"{process.create_time():.2f}"
    # Linux counts ticks from the boot; psutil adds the time of the boot, which moves whenever the clock is set.
    ticks = round((process.create_time() - psutil.boot_time()) * os.sysconf("SC_CLK_TCK"))
    try:
        boot = _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        boot = ""
    return f"{boot} {ticks}"
