"""Owners of nodes at a running gateway: their nodes and earnings, the operator's terms, over HTTP and the command line."""

import asyncio
import json
from datetime import UTC, datetime

import pytest

from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.quote import Payee, ProviderSource
from lcp_gateway.purchase.states import State
from lcp_gateway.store.accounts.nodes import Nodes
from lcp_gateway.store.database.engines import open_database
from lcp_gateway.store.journal.writer import JournalWriter
from tests.store.journals import charged, job, written
from tests.support.gateway import gateway, run_command
from tests.support.journaled import money_node, on_node
from tests.system.selling.seller import Seller, selling

NODE, OTHER = "gpu.abc123", "cpu.abc123"


@pytest.fixture(scope="module")
def journal(tmp_path_factory):
    return tmp_path_factory.mktemp("gateway") / "journal.db"


@pytest.fixture(scope="module")
def seller(journal, tmp_path_factory):
    with money_node(tmp_path_factory.mktemp("node")) as node:
        env = {**on_node(node, journal_url=str(journal)), **selling(node_commission_percent=20)}
        with gateway(embedded=False, env=env) as running:
            yield Seller(running, "")


async def serve_once(journal, buyer, owner, node):
    """What another gateway on this database writes for a request that the node delivered."""
    database = await open_database(journal)
    now = datetime.now(UTC)
    try:
        await Nodes(database).connected(node, owner, "key_1", node.partition(".")[0], now)
        writer = JournalWriter(database, on_problem=lambda _problem: None)
        writer.start()
        await writer.intend(
            charged(
                node,
                buyer,
                price_msat=1_000,
                payee=Payee(node, owner, 200_000),
                source=ProviderSource.NODE,
                peer_id=f"node:{node}",
                payment_hash=None,
                fee_cap_msat=Msat(0),
                refund_undelivered=True,
                at=now,
            )
        )
        writer.record(job(node), State.SETTLED, now)
        writer.record(job(node), State.DELIVERED, now)
        await written(writer)
        await writer.close()
    finally:
        await database.close()


def test_an_owner_sees_nodes_and_earnings_and_the_operator_sets_the_terms(seller, journal):
    office = seller.office
    buyer, owner, stranger = office.customer(10_000), office.customer(), office.customer()
    asyncio.run(serve_once(journal, buyer.account_id, owner.account_id, NODE))
    (node,) = owner.get("/api/nodes").json["data"]
    assert (node["id"], node["name"], node["up"], node["frozen"]) == (NODE, "gpu", False, False)
    assert (node["commission_percent"], node["delivered"]) == (20, 1)
    assert (node["earned_msat"], node["commission_msat"], node["earned_today_msat"]) == (800, 200, 800)
    assert stranger.get("/api/nodes").json["data"] == []
    (line,) = owner.get(f"/api/nodes/{NODE}/earnings").json["data"]
    assert (line["price_msat"], line["earned_msat"], line["commission_msat"]) == (1_000, 800, 200)
    assert stranger.get(f"/api/nodes/{NODE}/earnings").status == 404
    assert owner.moved() == [("earning", 800)]
    assert owner.balance()["available_msat"] == 800
    changed = office.post(f"nodes/{NODE}", {"commission_percent": 5, "frozen": True, "reason": "as agreed"})
    assert (changed.status, changed.json["commission_percent"], changed.json["frozen"]) == (200, 5, True)
    assert changed.json["account_id"] == owner.account_id
    for fields, param in (
        ({"commission_percent": 101, "reason": "x"}, "commission_percent"),
        ({"commission_percent": "5", "reason": "x"}, "commission_percent"),
        ({"frozen": 1, "reason": "x"}, "frozen"),
        ({"frozen": True}, "reason"),
    ):
        refused = office.post(f"nodes/{NODE}", fields)
        assert (refused.status, refused.error["param"]) == (400, param)
    assert office.post("nodes/none", {"frozen": True, "reason": "x"}).status == 404
    assert NODE in {it["id"] for it in office.get("nodes").json["data"]}
    assert office.get("log").json["data"][0]["action"] == "node.change"
    office.is_in_order()


def test_the_command_line_lists_them_and_sets_the_terms(seller, journal):
    office = seller.office
    buyer, owner = office.customer(10_000), office.customer()
    env = {"LCP_GATEWAY_JOURNAL_URL": str(journal), "LCP_GATEWAY_AUTH": "accounts"}
    asyncio.run(serve_once(journal, buyer.account_id, owner.account_id, OTHER))
    assert OTHER in {it["id"] for it in json.loads(run_command("nodes", "list", "--json", env=env).stdout)}
    set_to = run_command("nodes", "commission", OTHER, "12.5", "--why", "agreed", "--json", env=env)
    assert json.loads(set_to.stdout)["commission"] == "12.5 %", set_to.stderr
    frozen = run_command("nodes", "freeze", OTHER, "--why", "a lie", "--json", env=env)
    assert json.loads(frozen.stdout)["frozen"] is True
    thawed = run_command("nodes", "unfreeze", OTHER, "--why", "cleared up", "--json", env=env)
    assert json.loads(thawed.stdout)["frozen"] is False
    unknown = run_command("nodes", "freeze", "none", "--why", "x", env=env)
    assert (unknown.returncode, "there is no such node" in unknown.stderr) == (1, True)
    assert OTHER in run_command("nodes", "list", env=env).stdout
