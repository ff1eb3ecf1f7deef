"""The log of a gateway in the background under load: rotated by the gateway, without a line lost."""

import http.client
import json
import signal
import threading
import time

from lcp_gateway.telemetry.log_file import rotated
from tests.support.background import ended

REQUESTS = 2_000


def test_no_line_is_lost_and_following_goes_through_the_rotations(machine, port):
    started = machine.start(
        port, "--log-level", "debug", "--log-max-bytes", "20000", "--log-keep", "50"
    )
    assert started.code == 0
    following = machine.launch("logs", "-f", "-n", "0")
    parts = []
    reader = threading.Thread(target=lambda: parts.extend(following.stdout))
    reader.start()
    time.sleep(1.5)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    for number in range(REQUESTS):
        connection.request("GET", "/healthz", headers={"x-request-id": f"load-{number}"})
        connection.getresponse().read()
        if number % 250 == 0:
            time.sleep(0.4)
    connection.close()
    machine.run("stop")
    time.sleep(1.0)
    following.send_signal(signal.SIGINT)
    reader.join(10)
    assert ended(following).code == 0
    followed = "".join(parts)
    log = machine.log_file(port)
    old = rotated(log)
    assert len(old) >= 2
    assert all(path.stat().st_mode & 0o077 == 0 for path in (log, *old))
    written = "".join(path.read_text() for path in (*reversed(old), log))
    assert numbers(written) == list(range(REQUESTS))
    assert numbers(followed) == list(range(REQUESTS))
    assert machine.run("logs", "-n", "700").out.count("\n") == 700


def test_only_as_many_are_kept_as_asked_for(machine, port):
    assert machine.start(port, "--verbose", "--log-max-bytes", "150", "--log-keep", "2").code == 0
    for _ in range(4):
        machine.run("reload")
        time.sleep(1.1)
    machine.run("stop")
    assert len(rotated(machine.log_file(port))) == 2


def numbers(text):
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    ids = [line.get("request_id", "") for line in lines if line["event"] == "request"]
    return [int(name.removeprefix("load-")) for name in ids if name.startswith("load-")]
