"""Notifications to the service manager, and that a missing manager does no harm."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from lcp_gateway.supervisor.systemd import VARIABLES, Notifier

TIMEOUT_S = 60.0


class Manager:
    """The service manager's end of the socket."""

    def __init__(self, address):
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(TIMEOUT_S)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def heard(self):
        return self._socket.recv(4096).decode().splitlines()

    def silent(self):
        self._socket.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            return not self._socket.recv(4096)
        return True

    def close(self):
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    if request.param == "path":
        address = str(tmp_path / "notify")
    elif sys.platform == "linux":
        address = f"@lcp-gateway-test-{os.getpid()}-{time.monotonic_ns()}"
    else:
        pytest.skip("abstract sockets are Linux' own")
    found = Manager(address)
    yield found
    found.close()


def test_it_reports_the_state(manager):
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": manager.address})
    notifier.ready("3 peers, 7 models")
    assert manager.heard() == ["READY=1", "STATUS=3 peers, 7 models"]
    notifier.ready()
    assert manager.heard() == ["READY=1"]
    notifier.status("selling")
    assert manager.heard() == ["STATUS=selling"]
    notifier.stopping()
    assert manager.heard() == ["STOPPING=1"]


def test_a_reload_carries_the_managers_clock(manager):
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000
    Notifier.from_environ({"NOTIFY_SOCKET": manager.address}).reloading()
    reloading, at = manager.heard()
    assert reloading == "RELOADING=1"
    name, _, usec = at.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(usec) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000


def test_a_status_cannot_say_anything_else(manager):
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": manager.address})
    notifier.status("one\nSTOPPING=1\r\nMAINPID=1 " + "x" * 1000)
    (line,) = manager.heard()
    assert line.startswith("STATUS=one STOPPING=1 MAINPID=1 xxx")
    assert len(line) < 250


def test_the_variables_are_taken_out_so_that_children_have_none():
    environ = {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "4000000", "WATCHDOG_PID": "1"}
    Notifier.from_environ(environ | {"HOME": "/"})
    kept = environ | {"HOME": "/"}
    Notifier.from_environ(kept)
    assert kept == {"HOME": "/"}
    assert set(environ) == set(VARIABLES)


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:1", "@", "/nowhere/at/all", "/" * 200])
async def test_without_a_manager_nothing_happens(address):
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": address})
    notifier.ready("x")
    notifier.reloading()
    notifier.status("x")
    notifier.stopping()
    await asyncio.wait_for(notifier.watch(lambda: True), TIMEOUT_S)


def test_a_manager_that_went_away_does_no_harm(manager, tmp_path):
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": manager.address})
    manager.close()
    notifier.ready()
    (tmp_path / "notify").unlink(missing_ok=True)
    notifier.stopping()


def test_a_manager_that_does_not_read_does_not_block_the_gateway(manager):
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": manager.address})
    flood = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    flood.setblocking(False)
    name = manager.address.replace("@", "\0", 1)
    with flood, contextlib.suppress(BlockingIOError):
        while True:
            flood.sendto(b"x" * 1000, name)
    notifier.ready()


@pytest.fixture
def pauses(monkeypatch):
    """The pauses of the watchdog loop; the fourth one cancels it."""
    found = []

    async def sleep(seconds):
        found.append(seconds)
        if len(found) == 4:
            raise asyncio.CancelledError

    monkeypatch.setattr("lcp_gateway.supervisor.systemd.asyncio", SimpleNamespace(sleep=sleep))
    return found


async def test_the_watchdog_is_notified_at_half_its_time_out(manager, pauses):
    environ = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "200000"}
    notifier = Notifier.from_environ(environ | {"WATCHDOG_PID": str(os.getpid())})
    assert notifier.watchdog_s == 0.2
    with pytest.raises(asyncio.CancelledError):
        await notifier.watch(lambda: True)
    assert pauses == [0.1] * 4
    assert [manager.heard() for _ in pauses] == [["WATCHDOG=1"]] * 4


async def test_a_gateway_that_is_not_well_does_not_notify(manager, pauses):
    well = iter([True, False, False, True])
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "40000"})
    with pytest.raises(asyncio.CancelledError):
        await notifier.watch(lambda: next(well))
    assert [manager.heard() for _ in range(2)] == [["WATCHDOG=1"]] * 2
    assert manager.silent()


@pytest.mark.parametrize(
    "watchdog",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "-5"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "20000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "20000", "WATCHDOG_PID": "x"},
    ],
)
async def test_without_a_watchdog_none_is_notified(manager, watchdog):
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": manager.address, **watchdog})
    await asyncio.wait_for(notifier.watch(lambda: True), TIMEOUT_S)
    assert manager.silent()
    notifier.ready()


def test_it_sends_the_same_as_systemd_notify(manager):
    """Both send the same message, where systemd-notify is installed."""
    try:
        subprocess.run(
            ["systemd-notify", "--no-block", "--ready", "--status=up"],
            env={**os.environ, "NOTIFY_SOCKET": manager.address},
            check=True,
            timeout=TIMEOUT_S,
        )
    except FileNotFoundError:
        pytest.skip("systemd-notify is not here")
    theirs = manager.heard()
    Notifier.from_environ({"NOTIFY_SOCKET": manager.address}).ready("up")
    assert set(manager.heard()) <= set(theirs)
