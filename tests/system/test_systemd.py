"""A gateway under systemd notifies it of ready, watchdog, reload and stop; its embedded node sends nothing."""

import contextlib
import signal
import socket
import time
from pathlib import Path

import psutil
import pytest

from tests.support.forked import REAL_START
from tests.support.gateway import gateway

TIMEOUT_S = 60


@pytest.fixture
def manager(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
        found.bind(str(tmp_path / "notify"))
        found.settimeout(TIMEOUT_S)
        yield found


def heard(manager, wanted):
    """Every message up to the first that says ``wanted``."""
    messages = []
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        messages.append(manager.recv(4096).decode())
        if wanted in messages[-1].splitlines():
            return messages
    raise AssertionError(messages)


def test_systemd_is_notified_from_start_to_stop(manager):
    settings = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "2000000"}
    with gateway(env=settings) as running:
        heard(manager, "READY=1")
        heard(manager, "WATCHDOG=1")
        running.process.send_signal(signal.SIGHUP)
        # Between the two, on a busy machine, the watchdog may be notified again.
        assert any("RELOADING=1\nMONOTONIC_USEC=" in message for message in heard(manager, "READY=1"))
        # Its messages are read as they come: few of them wait, and further ones would be lost.
        running.process.send_signal(signal.SIGTERM)
        heard(manager, "STOPPING=1")
        assert running.process.wait(60) == 0


def test_the_node_sends_no_notifications(manager):
    settings = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "900000000"}
    with gateway(env=settings | REAL_START) as running:
        heard(manager, "READY=1")
        (node,) = running.node_pids()
        environment = psutil.Process(node).environ()
        assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(environment)


def test_a_gateway_that_hangs_gives_no_sign_of_life(manager):
    settings = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "400000"}
    with gateway(env=settings) as running:
        heard(manager, "WATCHDOG=1")
        running.process.send_signal(signal.SIGSTOP)
        try:
            # Messages that were queued when it stopped: on a busy machine several watchdog messages.
            manager.settimeout(0.1)
            with contextlib.suppress(TimeoutError):
                for _ in range(100):
                    manager.recv(4096)
            manager.settimeout(1)
            with pytest.raises(TimeoutError):
                manager.recv(4096)
        finally:
            running.process.send_signal(signal.SIGCONT)


def test_a_missing_notify_socket_is_no_failure(manager, tmp_path):
    settings = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "100000"}
    with gateway(env=settings) as running:
        heard(manager, "READY=1")
        Path(tmp_path / "notify").unlink()
        time.sleep(0.5)
        assert running.process.poll() is None
        assert running.stop() == 0
        assert "error" not in {line.get("level") for line in running.json_logs()}
