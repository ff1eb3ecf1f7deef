"""A database that hangs while nothing is bought: a gateway without accounts reports it too, and recovers by itself."""

import pytest

from tests.support.forked import REAL_START
from tests.support.gateway import gateway
from tests.support.journaled import money_node, on_node
from tests.support.node_thread import eventually
from tests.support.postgres import running_postgres
from tests.support.wire import CHAT, document, get, post

pytestmark = pytest.mark.slow


def test_a_gateway_that_nothing_is_bought_from_says_that_its_database_hangs(tmp_path):
    """Once `/readyz` was 200 until the next purchase."""
    with (
        money_node(tmp_path) as node,
        running_postgres() as server,
        server.fresh_database() as url,
        gateway(embedded=False, env=on_node(node, journal_url=url) | REAL_START) as running,
    ):

        def is_ready() -> bool:
            return get(running.port, "/readyz").status == 200

        eventually(is_ready)
        with server.paused():
            eventually(lambda: not is_ready())
            (reason,) = get(running.port, "/readyz").json["reasons"]
            assert reason == "the journal cannot be written: the database does not answer in time"
            metrics = get(running.port, "/metrics").body.decode()
            assert "lcpgateway_journal_trouble 1.0" in metrics
        eventually(is_ready)
        assert post(running.port, CHAT, document(max_tokens=8)).status == 200
