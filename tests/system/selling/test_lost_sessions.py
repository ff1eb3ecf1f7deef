"""A gateway that loses its sessions on PostgreSQL while it delivers: it is alive, and no other gateway may take it for dead."""

import threading
import time
from contextlib import contextmanager, suppress

import psutil
import pytest

from tests.support.gateway import RunningGateway, gateway
from tests.support.journaled import money_node, on_node
from tests.support.node_thread import eventually
from tests.system.selling.seller import MARKUP, Customer, Office, charged, selling

pytestmark = pytest.mark.slow

FILLED = 1_000_000
WORDS = " ".join(f"word{number}" for number in range(260))
"""Told at the node's slow pace in some thirteen seconds: longer than a dead gateway's purchases are left alone."""


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    with money_node(tmp_path_factory.mktemp("node"), faults=True) as running:
        yield running


@contextmanager
def two_gateways(node, postgres):
    """Run two gateways on one new database; return them and the database's name."""
    with postgres.fresh_database() as url:
        env = {**on_node(node, journal_url=url), **selling(timeout_execute_s=60)}
        with gateway(embedded=False, env=env) as first, gateway(embedded=False, env=env) as second:
            yield first, second, url.rpartition("/")[2]


def end_sessions(postgres, running: RunningGateway, database: str) -> int:
    """End this gateway's sessions at the server, as a restarted pooler or a network would; return how many."""
    ports = [
        str(connection.laddr.port)
        for connection in psutil.Process(running.process.pid).net_connections("tcp")
        if connection.raddr and connection.raddr.port == postgres.port
    ]
    if not ports:
        return 0
    ended = postgres.sql(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        f"WHERE datname = '{database}' AND client_port IN ({','.join(ports)})"
    )
    return int(ended)


def state_of_all(postgres, database: str) -> str:
    return postgres.sql("SELECT string_agg(state, ' ') FROM purchases", database)


def test_a_stream_whose_gateway_loses_its_sessions_ends_delivered_and_charged_once(node, postgres):
    """Once the other gateway found its lock free, recorded the purchase as undelivered, and refunded the charge."""
    seen = node.mark()
    with two_gateways(node, postgres) as (delivering, other, database):
        customer = Office(delivering.port).customer(FILLED)
        answers: list = []
        asking = threading.Thread(
            target=lambda: answers.append(customer.ask("echo-slow", WORDS, stream=True, max_tokens=400)), daemon=True
        )
        asking.start()
        eventually(lambda: state_of_all(postgres, database) == "settled")
        ended = 0
        while asking.is_alive():
            ended += end_sessions(postgres, delivering, database)
            asking.join(2.5)
        assert ended >= 4
        (answer,) = answers
        assert answer.whole and answer.blocks[-1][1] == "[DONE]"
        (job_id,) = seen.jobs("paid")
        (paid,) = [event for event in node.events("paid") if event["job_id"] == job_id]
        charge = MARKUP.charge_msat(paid["price_msat"])
        assert charged(answer) == charge
        eventually(lambda: state_of_all(postgres, database) == "delivered")
        there = Customer(other.port, customer.account_id, customer.key)
        assert there.moved() == [("adjustment", FILLED), ("purchase", -charge)]
        there.office.is_in_order()
        assert "were moved on" not in other.logs
        assert "was lost and replaced" in delivering.logs


def test_a_dead_gateways_purchases_are_swept_by_the_other_one_in_time(node, postgres):
    seen = node.mark()
    with two_gateways(node, postgres) as (dying, other, database):
        customer = Office(dying.port).customer(FILLED)

        def ask() -> None:
            with suppress(OSError, EOFError, ValueError, IndexError):
                customer.ask("fault/stream-stalls", stream=True)

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        eventually(lambda: state_of_all(postgres, database) == "settled")
        begun = time.monotonic()
        dying.process.kill()
        asking.join(60)
        eventually(lambda: state_of_all(postgres, database) == "undelivered")
        assert time.monotonic() - begun > 8
        assert seen.count("paid") == 1
        there = Customer(other.port, customer.account_id, customer.key)
        assert [kind for kind, _ in there.moved()] == ["adjustment", "purchase", "refund"]
        assert there.balance()["balance_msat"] == FILLED
        there.office.is_in_order()
