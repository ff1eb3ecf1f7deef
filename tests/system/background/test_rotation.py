"""The log of a gateway in the background under load: rotated by the gateway, without a line lost."""

import http.client
import json
import signal
import threading
from contextlib import suppress

import pytest

from lcp_gateway.telemetry.log_output import rotated
from tests.support.background import ended
from tests.support.node_thread import eventually

pytestmark = pytest.mark.slow

REQUESTS = 600
BATCH = 100


def test_no_line_is_lost_and_following_goes_through_the_rotations(machine, port):
    started = machine.start(port, "--log-level", "debug", "--log-max-bytes", "6000", "--log-keep", "50")
    assert started.code == 0
    following = machine.launch("logs", "-f", "-n", "0")
    parts = []
    reader = threading.Thread(target=lambda: parts.extend(following.stdout))
    reader.start()
    log = machine.log_file(port)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(name: str) -> None:
        connection.request("GET", "/healthz", headers={"x-request-id": name})
        connection.getresponse().read()

    def is_following() -> bool:
        ask("has it begun?")
        return bool(parts)

    eventually(is_following)
    for first in range(0, REQUESTS, BATCH):
        turned = len(rotated(log))
        for number in range(first, first + BATCH):
            ask(f"load-{number}")
        # The gateway looks at its log once a second.
        eventually(lambda turned=turned: len(rotated(log)) > turned)
    connection.close()
    machine.run("stop")
    eventually(lambda: len(numbers("".join(list(parts)))) == REQUESTS)
    following.send_signal(signal.SIGINT)
    reader.join(60)
    assert ended(following).code == 0
    followed = "".join(parts)
    old = rotated(log)
    assert len(old) >= REQUESTS // BATCH
    assert all(path.stat().st_mode & 0o077 == 0 for path in (log, *old))
    written = "".join(path.read_text() for path in (*reversed(old), log))
    assert numbers(written) == list(range(REQUESTS))
    assert numbers(followed) == list(range(REQUESTS))
    assert machine.run("logs", "-n", "400").out.count("\n") == 400


def test_only_as_many_are_kept_as_asked_for(machine, port):
    assert machine.start(port, "--verbose", "--log-max-bytes", "150", "--log-keep", "2").code == 0
    log = machine.log_file(port)
    seen = set()

    def has_turned_three_times() -> bool:
        machine.run("reload")
        # Its first line tells a file from the next: an inode is soon used again.
        with suppress(FileNotFoundError):
            seen.add(log.read_text().partition("\n")[0])
        return len(seen) > 4

    eventually(has_turned_three_times)
    machine.run("stop")
    assert len(rotated(machine.log_file(port))) == 2


def numbers(text):
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    ids = [line.get("request_id", "") for line in lines if line["event"] == "request"]
    return [int(name.removeprefix("load-")) for name in ids if name.startswith("load-")]
