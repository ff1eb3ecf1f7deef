"""Events reach a client at one worker whichever worker bought, and after a restart it is told what it missed."""

import http.client
import json
import threading
import urllib.request

import pytest

from tests.support.gateway import gateway


class Events(threading.Thread):
    """Reads the events of one stream until it ends."""

    def __init__(self, port: int, last_id: str = "") -> None:
        super().__init__(daemon=True)
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._connection.request("GET", "/api/events", headers={"Last-Event-ID": last_id} if last_id else {})
        self._response = self._connection.getresponse()
        assert self._response.status == 200
        self._news = threading.Condition()
        self.found: list[tuple[str, dict, str]] = []
        self.start()

    def run(self) -> None:
        fields: dict[str, str] = {}
        for raw in self._response:
            line = raw.decode().rstrip("\n")
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif "event" in fields:
                with self._news:
                    self.found.append((fields["event"], json.loads(fields["data"]), fields["id"]))
                    self._news.notify_all()
                fields = {}

    def wait(self, until, timeout_s: float = 60.0) -> None:
        with self._news:
            assert self._news.wait_for(lambda: until(self.found), timeout_s), self.found

    def delivered(self) -> set[str]:
        return {data["job_id"] for name, data, _ in self.found if name == "purchase" and data["state"] == "delivered"}


def buy(served, text: str) -> str:
    """Buy on a connection of its own, which any worker may get; return the job's id."""
    body = {"model": "echo-1", "messages": [{"role": "user", "content": text}]}
    request = urllib.request.Request(
        f"{served.api_url}/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Connection": "close"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return response.headers["X-Lcp-Job-Id"]


@pytest.mark.slow
def test_a_client_is_told_what_any_worker_bought_and_what_it_missed():
    with gateway(env={"LCP_GATEWAY_WORKERS": "2"}) as served:
        first = Events(served.port)
        first.wait(lambda found: any(name == "catalog" for name, _, _ in found))
        assert first.found[0][0] == "hello"
        bought = {buy(served, f"n {number}") for number in range(8)}
        first.wait(lambda _found: first.delivered() >= bought)
        last_id = first.found[-1][2]
        missed = {buy(served, f"m {number}") for number in range(3)}
        again = Events(served.port, last_id)
        again.wait(lambda _found: again.delivered() >= missed)
        assert again.found[0][1]["missed"] is False
