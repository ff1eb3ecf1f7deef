"""The two gateways of the profile operator, as docker-compose.yml sets them up, behave as one."""

import http.client
import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from lcp_gateway.node.config import NodeConfig, derive_key
from tests.support.compose import resolved, services
from tests.support.gateway import RunningGateway, gateway
from tests.support.lnd_standin import LndStandin, in_a_thread
from tests.support.minutes import within_a_minute
from tests.support.node_thread import threaded_node
from tests.support.ports import free_port
from tests.support.postgres import running_postgres
from tests.support.redis import binary

pytestmark = pytest.mark.slow

ADMIN, PASSWORD = "sk-admin-of-the-operator", "s3cret"
GATEWAYS = ("gateway-operator-1", "gateway-operator-2")


@contextmanager
def redis_of_the_file() -> Iterator[int]:
    """Run the command of the service, on a port of the test."""
    binary()
    port = free_port()
    shell, flag, script = services()["redis"]["command"]
    script = script.replace("$$", "$").replace("redis-server -", f"exec redis-server - --port {port} --bind 127.0.0.1")
    process = subprocess.Popen(
        [shell, flag, script],
        env={"PATH": os.environ["PATH"], "REDIS_PASSWORD": PASSWORD},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        cwd="/tmp",
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while say(port, b"PING").startswith(b"?"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield port
    finally:
        say(port, b"AUTH " + PASSWORD.encode() + b"\r\nSHUTDOWN NOSAVE")
        process.wait(60)


def say(port: int, words: bytes) -> bytes:
    """Return the first byte of Redis' answer, "?" while it does not answer."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(words + b"\r\n")
            return connection.recv(200)
    except OSError:
        return b"?"


@dataclass(frozen=True)
class Operator:
    gateways: tuple[RunningGateway, RunningGateway]
    metrics_ports: tuple[int, int]
    redis_port: int
    lnd: LndStandin

    def ask(self, which: int, method: str, path: str, key: str, fields: object = None):
        """Ask one of the two, and return status and document."""
        connection = http.client.HTTPConnection("127.0.0.1", self.gateways[which].port, timeout=120)
        try:
            headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
            body = None if fields is None else json.dumps(fields)
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def customer(self, **rules: object) -> str:
        """Make an account and its key at the first."""
        _, account = self.ask(0, "POST", "/api/admin/accounts", ADMIN, {"name": "alice"})
        path = f"/api/admin/accounts/{account['id']}/keys"
        status, made = self.ask(0, "POST", path, ADMIN, {"name": "laptop", **rules})
        assert status == 201, made
        return made["key"]

    def wait_for(self, what, timeout_s: float = 60.0):
        deadline = time.monotonic() + timeout_s
        while not (found := what()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return found

    def metric(self, which: int, name: str) -> float | None:
        """Read a metric where no key is asked for."""
        url = f"http://127.0.0.1:{self.metrics_ports[which]}/metrics"
        with urllib.request.urlopen(url, timeout=60) as answer:
            lines = answer.read().decode().splitlines()
        found = [line.split()[1] for line in lines if line.startswith(f"lcpgateway_{name} ")]
        return float(found[0]) if found else None


@pytest.fixture(scope="module")
def operator(tmp_path_factory):
    """Return the two, with the environment of the file but for the addresses of this machine."""
    folder = tmp_path_factory.mktemp("operator")
    lnd = LndStandin(folder, key=derive_key(NodeConfig().seed, "node"))
    with (
        running_postgres() as postgres,
        postgres.fresh_database() as database_url,
        redis_of_the_file() as redis_port,
        in_a_thread(lnd),
        threaded_node(NodeConfig(listen="127.0.0.1:0")) as node,
    ):
        elsewhere = {
            "/run/secrets/lnd-cert": str(lnd.address.tls_cert),
            "/run/secrets/lnd-macaroon": str(lnd.address.macaroon),
            "/run/secrets/lnd-invoice-macaroon": str(lnd.address.macaroon),
            "lnd:10009": lnd.address.target,
            "127.0.0.1:50051": node.address,
        }
        metrics_ports = (free_port(), free_port())

        def settings(name: str, metrics_port: int) -> dict[str, str]:
            given = {}
            for key, value in services()[name]["environment"].items():
                text = str(value).replace("${REDIS_PASSWORD:-}", PASSWORD)
                text = resolved(text.replace("${LCP_GATEWAY_ADMIN_KEY:-}", ADMIN))
                given[key] = elsewhere.get(text, text).replace("@redis:6379", f"@127.0.0.1:{redis_port}")
            given["LCP_GATEWAY_JOURNAL_URL"] = database_url
            given["LCP_GATEWAY_HTTP_ADDR"] = "127.0.0.1:0"
            given["LCP_GATEWAY_METRICS_ADDR"] = f"127.0.0.1:{metrics_port}"
            return given

        first, second = (settings(*pair) for pair in zip(GATEWAYS, metrics_ports, strict=True))
        with gateway(embedded=False, env=first) as one, gateway(embedded=False, env=second) as other:
            yield Operator((one, other), metrics_ports, redis_port, lnd)


def test_redis_refuses_a_client_without_the_password(operator):
    assert say(operator.redis_port, b"PING").startswith(b"-NOAUTH")


def test_a_top_up_at_one_is_spent_at_both_at_the_marked_up_price(operator):
    key = operator.customer()
    status, topup = operator.ask(0, "POST", "/api/wallet/topups", key, {"amount_sat": 100})
    assert status == 201
    operator.lnd.run(operator.lnd.settle(bytes.fromhex(topup["payment_hash"])))

    def balance_msat(which):
        return operator.ask(which, "GET", "/api/wallet", key)[1].get("balance_msat")

    operator.wait_for(lambda: balance_msat(1) == 100_000)
    request = {"model": "echo-1", "max_tokens": 20, "messages": [{"role": "user", "content": "hello"}]}
    for which in (0, 1):
        status, _ = operator.ask(which, "POST", "/v1/chat/completions", key, request)
        assert status == 200

    def charged():
        _, listed = operator.ask(1, "GET", "/api/wallet/transactions", key)
        return [-line["amount_msat"] for line in listed["data"] if line["cause"] == "purchase"]

    # A charge is in the ledger soon after its answer, not before it.
    operator.wait_for(lambda: len(charged()) == 2)
    charges = charged()
    assert balance_msat(0) == balance_msat(1) == 100_000 - sum(charges)
    _, audit = operator.ask(1, "GET", "/api/admin/audit", ADMIN)
    assert audit["ok"], audit["problems"]


def test_a_rate_holds_for_both_together(operator):
    def with_a_new_key():
        key = operator.customer(requests_per_minute=2)
        operator.wait_for(lambda: operator.ask(1, "GET", "/api/wallet", key)[0] == 200)
        request = {"model": "echo-1", "messages": [{"role": "user", "content": "hello"}]}
        statuses = [operator.ask(which, "POST", "/v1/chat/completions", key, request)[0] for which in (0, 1, 0, 1)]
        # It has no balance, which is checked after the rate.
        assert statuses == [402, 402, 429, 429]

    within_a_minute(with_a_new_key)


def test_one_of_them_follows_the_settlements(operator):
    def leaders():
        return sorted(operator.metric(which, "settlements_leader") for which in (0, 1))

    operator.wait_for(lambda: leaders() == [0, 1])
    operator.wait_for(lambda: operator.metric(0, "lnd_up") == 1)
