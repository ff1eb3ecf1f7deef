"""The journal of a running gateway is deleted, moved or replaced: the gateway pays nothing."""

import shutil

import pytest

from tests.support.gateway import gateway, run_command
from tests.support.journaled import chat, money_node, on_node, states
from tests.support.node_thread import eventually
from tests.support.wire import CHAT, get, post
from tests.system.selling.seller import Office, bearer, selling

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    with money_node(tmp_path_factory.mktemp("node")) as running:
        yield running


@pytest.fixture
def journal(tmp_path):
    (tmp_path / "state").mkdir()
    return tmp_path / "state" / "journal.db"


def aside(journal):
    return journal.with_name("aside.db")


def replaced(journal):
    shutil.copy(journal, aside(journal))
    journal.rename(journal.with_name("old.db"))
    aside(journal).rename(journal)


HARMS = {
    "deleted": lambda journal: journal.unlink(),
    "moved": lambda journal: journal.rename(aside(journal)),
    "replaced": replaced,
    "folder moved": lambda journal: journal.parent.rename(journal.parent.with_name("moved")),
    "log deleted": lambda journal: journal.with_name("journal.db-wal").unlink(),
}


def ready_reasons(port):
    answer = get(port, "/readyz")
    return [] if answer.status == 200 else answer.json["reasons"]


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_a_gateway_stops_paying_and_says_why(node, journal, harm):
    """Once it went on buying, and `/readyz` stayed 200."""
    seen = node.mark()
    with gateway(embedded=False, env=on_node(node, journal_url=journal)) as running:
        assert post(running.port, CHAT, chat()).status == 200
        assert ready_reasons(running.port) == []
        harm(journal)
        for _ in range(3):
            refused = post(running.port, CHAT, chat())
            assert (refused.status, refused.verdict) == (503, "none")
            assert refused.error["code"] == "journal_unavailable"
            assert "nothing was paid" in refused.error["message"]
            assert "/" not in refused.error["message"]
        (reason,) = ready_reasons(running.port)
        assert reason.startswith("the journal cannot be written: its ")
    assert seen.count("accept") == 1


def test_it_is_detected_without_a_purchase_and_ends_when_the_file_is_back(node, journal):
    seen = node.mark()
    with gateway(embedded=False, env=on_node(node, journal_url=journal)) as running:
        assert post(running.port, CHAT, chat()).status == 200
        journal.rename(aside(journal))
        eventually(lambda: ready_reasons(running.port))
        aside(journal).rename(journal)
        eventually(lambda: not ready_reasons(running.port))
        assert post(running.port, CHAT, chat()).status == 200
        # The results of payments that ended meanwhile were kept.
        eventually(lambda: set(states(journal).values()) == {"delivered"})
    assert seen.count("accept") == 2


def test_customers_are_not_served_from_a_deleted_journal_and_the_audit_fails_after_a_restart(node, journal):
    """Once the audit succeeded after a restart although accounts and purchases were missing."""
    env = {**on_node(node, journal_url=journal), **selling(keys_stale_s=3)}
    with gateway(embedded=False, env=env) as running:
        customer = Office(running.port).customer(10_000_000)
        # A gateway that the machine holds up for so long refuses once, until its keys are read again.
        eventually(lambda: post(running.port, CHAT, chat(), bearer(customer.key)).status == 200)
        journal.rename(aside(journal))
        wallet = get(running.port, "/api/wallet", bearer(customer.key))
        assert wallet.status == 503, wallet.body
        # Keys in memory are not accepted after keys_stale_s.
        eventually(lambda: get(running.port, "/v1/models", bearer(customer.key)).status == 503)
        assert post(running.port, CHAT, chat(), bearer(customer.key)).status == 503
    with gateway(embedded=False, env=env) as running:
        assert "another journal was kept here before" in running.logs
        reported = Office(running.port).get("audit").json
        assert reported["ok"] is False and "another journal" in reported["problems"][0]
    done = run_command("accounts", "audit", env=env)
    assert done.returncode == 1
    assert "another journal was kept here before" in done.stdout + done.stderr
