"""The real program on PostgreSQL behind PgBouncer."""

import pytest

from tests.support.gateway import gateway, run_command
from tests.support.node_thread import eventually
from tests.support.pgbouncer import pgbouncer, through
from tests.support.postgres import running_postgres
from tests.support.wire import CHAT, document, get, post


@pytest.fixture(scope="module")
def postgres():
    with running_postgres() as server:
        yield server


def test_a_gateway_behind_pgbouncer_in_session_mode_starts_and_buys(postgres):
    with pgbouncer(postgres) as port, postgres.fresh_database() as url:
        # Two share it, as replicas do.
        settings = {"LCP_GATEWAY_JOURNAL_URL": through(url, port)}
        with gateway(env=settings) as first, gateway(env=settings) as second:
            for served in (first, second):
                for stream in (False, True):
                    answer = post(served.port, CHAT, document(CHAT, stream=stream))
                    assert (answer.status, answer.verdict) == (200, "settled")
                assert get(served.port, "/readyz").status == 200
            count = "SELECT count(*) FROM purchases WHERE state = 'delivered'"
            name = url.rpartition("/")[2]
            eventually(lambda: postgres.sql(count, name) == "4")
            assert (first.stop(), second.stop()) == (0, 0)
            assert not [line for line in first.json_logs() if line["level"] == "error"]


def test_transaction_mode_is_refused_at_the_start_in_one_line(postgres, tmp_path):
    with pgbouncer(postgres, pool_mode="transaction") as port, postgres.fresh_database() as url:
        settings = {
            "LCP_GATEWAY_HTTP_ADDR": "127.0.0.1:0",
            "LCP_GATEWAY_JOURNAL_URL": through(url, port),
            "XDG_CONFIG_HOME": str(tmp_path),
        }
        done = run_command("serve", "--embedded", env=settings)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("lcp-gateway:")]
    assert "pool_mode = session" in line and "pgbouncer.ini" in line
    assert "Traceback" not in done.stderr
