"""A gateway whose standard output and error are not read goes on serving, and ends on SIGTERM."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from tests.support.gateway import PATIENT, clean_environment
from tests.support.node_thread import eventually
from tests.support.ports import free_port
from tests.support.wire import CHAT, document, get, post

pytestmark = pytest.mark.slow

F_SETPIPE_SZ = 1031
SMALL_PIPE_BYTES = 4096
LOST = "lcpgateway_log_lines_lost_total"


@contextmanager
def unread_gateway(folder):
    """Run a gateway with a small pipe behind both streams; return its port, the process and the reading end."""
    read, write = os.pipe()
    fcntl.fcntl(write, F_SETPIPE_SZ, SMALL_PIPE_BYTES)
    port = free_port()
    settings = {
        "LCP_GATEWAY_HTTP_ADDR": f"127.0.0.1:{port}",
        "LCP_GATEWAY_LOG_FORMAT": "json",
        "LCP_GATEWAY_LOG_LEVEL": "debug",
        "LCP_GATEWAY_VERBOSE": "true",
        "LCP_GATEWAY_LOOP_BRAKE_PER_MINUTE": "0",
        # Only the log may hold a request up, not a machine that stands still while a quote or a commit is waited for.
        **PATIENT,
        "LCP_GATEWAY_JOURNAL_URL": "off",
        "XDG_CONFIG_HOME": str(folder),
        "XDG_STATE_HOME": str(folder),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "lcp_gateway", "serve", "--embedded"],
        stdin=subprocess.DEVNULL,
        stdout=write,
        stderr=write,
        env=clean_environment(settings),
    )
    os.close(write)
    try:
        eventually(lambda: answers(port))
        yield port, process, read
    finally:
        process.kill()
        process.wait(60)
        os.close(read)


def answers(port):
    try:
        return get(port, "/readyz").status == 200
    except OSError:
        return False


def lost_lines(port):
    text = get(port, "/metrics").body.decode()
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{LOST} "))


def keep_asking(port, seconds, statuses):
    ends = time.monotonic() + seconds
    number = 0
    while time.monotonic() < ends or number < 50:
        number += 1
        model = "echo-1" if number % 20 == 0 else f"no-such-model-{'x' * 150}"
        statuses.append(post(port, CHAT, document(CHAT, model, f"hello {number}")).status)


def under_load(port, seconds):
    statuses = []
    workers = [threading.Thread(target=keep_asking, args=(port, seconds, statuses)) for _ in range(4)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        assert get(port, "/healthz").status == 200
        time.sleep(0.1)
    return statuses


# Longer by hand: the bounds hold from the moment that the pipe and the queue are full.
SECONDS = float(os.environ.get("UNREAD_SECONDS", "6"))


@pytest.mark.timeout(180)
def test_requests_health_and_sigterm_go_on_while_nothing_reads_the_log(tmp_path):
    """Once everything hung after 95 requests, SIGTERM too."""
    with unread_gateway(tmp_path) as (port, process, read):
        statuses = under_load(port, SECONDS)
        assert set(statuses) == {200, 404}
        while lost_lines(port) == 0:
            under_load(port, 2)
        # The log is read again: first come the lines that were kept, then how many were not.
        text = bytearray()
        reader = threading.Thread(target=read_until, args=(read, text, b"log lines were lost"))
        reader.start()
        reader.join(60)
        reported = json.loads(next(line for line in text.split(b"\n") if b"log lines were lost" in line))
        assert reported["level"] == "warning"
        assert reported["lines"] > 0
        # The metric follows within a second.
        eventually(lambda: lost_lines(port) >= reported["lines"])
        # And again it is not read.
        under_load(port, 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def read_until(descriptor, text, mark):
    while not (mark in text and text.endswith(b"\n")):
        text += os.read(descriptor, 65536)
