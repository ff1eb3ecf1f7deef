"""A running gateway reports exactly the background tasks of its configuration."""

import pytest

from lcp_gateway.node.config import NodeConfig, derive_key
from tests.support.gateway import gateway
from tests.support.lnd_standin import LndStandin, in_a_thread, lnd_settings
from tests.support.wire import get
from tests.system.selling.seller import ADMIN_KEY, bearer, selling

ALWAYS = {"peers", "nodes", "dialin", "events", "loop", "purge", "reload"}
OF_A_JOURNAL = {"journal", "owner_lock", "sweep", "books", "reconciler"}
OF_ACCOUNTS = {"keys", "solvency", "sessions", "node_terms", "withdrawals_open", "withdrawals_begun"}
OF_TOP_UPS = {"settlements", "settlements_lead", "topups", "payouts"}
OF_LND = {"lnd", "learning"}


@pytest.fixture(scope="module")
def lnd(tmp_path_factory):
    standin = LndStandin(tmp_path_factory.mktemp("lnd"), key=derive_key(NodeConfig().seed, "node"))
    with in_a_thread(standin):
        yield lnd_settings(standin.address)


@pytest.mark.parametrize(
    ("settings", "with_lnd", "expected"),
    [
        ({"LCP_GATEWAY_JOURNAL_URL": "off"}, False, ALWAYS),
        ({}, False, ALWAYS | OF_A_JOURNAL),
        (selling(), False, ALWAYS | OF_A_JOURNAL | OF_ACCOUNTS | OF_TOP_UPS),
        (selling(), True, ALWAYS | OF_A_JOURNAL | OF_ACCOUNTS | OF_TOP_UPS | OF_LND),
    ],
    ids=["no journal", "a journal", "accounts", "accounts and lnd"],
)
def test_background_tasks_are_reported_and_counted(lnd, settings, with_lnd, expected):
    """Once tasks ended without a log line or metric; each must be listed by its name."""
    env = {**settings, **(lnd if with_lnd else {})}
    with gateway(env=env) as running:
        reported = get(running.port, "/readyz").json["tasks"]
        assert set(reported) == expected
        assert set(map(str, reported.values())) == {str({"up": True, "restarts": 0})}
        metrics = get(running.port, "/metrics", bearer(ADMIN_KEY)).body.decode()
        for name in expected:
            assert f'lcpgateway_task_restarts_total{{task="{name}"}} 0.0' in metrics
        assert "background task ended" not in running.logs
