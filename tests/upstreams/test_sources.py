import asyncio

import pytest

from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.routing.catalog import Catalog
from lcp_gateway.upstreams.sources import MergedCatalog
from tests.routing.offering import CHAT, provider

PEER, NODE, OTHER = provider("a", "m"), provider("node:n", "m"), provider("node:o", "n")
AWAY = UpstreamError("UNAVAILABLE", "the daemon is away")


class Peers:
    """Stands in for the watch of peers; ``refresh_if_stale`` replaces its catalog by ``fresh``."""

    def __init__(self, *providers, problem=None, age_s=7.0):
        self.catalog = Catalog(providers, 3.0)
        self.problem, self.age_s = problem, age_s
        self.fresh = self.catalog
        self.refreshes = 0

    async def refresh_if_stale(self):
        self.refreshes += 1
        await asyncio.sleep(0)
        self.catalog = self.fresh
        return self.catalog


class Nodes:
    def __init__(self, *providers):
        self.providers = providers
        self.fresh = providers
        self.refreshes = 0

    async def refresh_if_stale(self):
        self.refreshes += 1
        await asyncio.sleep(0)
        self.providers = self.fresh


def merged(peers, virtual, *dialled_in):
    return MergedCatalog(peers, virtual, Nodes(*dialled_in))


def test_with_peers_alone_the_catalog_is_the_peers_own():
    peers = Peers(PEER)
    assert merged(peers, Nodes()).catalog is peers.catalog


def test_peers_come_first_and_then_the_nodes():
    catalog = merged(Peers(PEER), Nodes(NODE, OTHER)).catalog
    assert catalog.providers == (PEER, NODE, OTHER)
    assert catalog.taken_at == 3.0
    assert catalog.offering(CHAT, "m") == (PEER, NODE)
    assert catalog.peer("node:o") is OTHER


def test_nodes_that_dialled_in_come_last():
    catalogs = merged(Peers(PEER), Nodes(NODE), OTHER)
    assert catalogs.catalog.providers == (PEER, NODE, OTHER)
    assert catalogs.catalog is catalogs.catalog
    alone = merged(Peers(problem=AWAY), Nodes(), OTHER)
    assert alone.catalog.providers == (OTHER,)
    assert (alone.problem, alone.age_s) == (None, 0.0)


def test_it_is_the_same_object_while_nothing_changes():
    catalogs = merged(Peers(PEER), Nodes(NODE))
    assert catalogs.catalog is catalogs.catalog


@pytest.mark.parametrize("change", ["peers", "nodes", "all nodes down"])
def test_it_is_another_object_once_something_changes(change):
    peers, nodes = Peers(PEER), Nodes(NODE)
    catalogs = merged(peers, nodes)
    before = catalogs.catalog
    if change == "peers":
        peers.catalog = Catalog((), 4.0)
        expected = (NODE,)
    elif change == "nodes":
        nodes.providers = (NODE, OTHER)
        expected = (PEER, NODE, OTHER)
    else:
        nodes.providers = ()
        expected = (PEER,)
    assert catalogs.catalog is not before
    assert catalogs.catalog is catalogs.catalog
    assert catalogs.catalog.providers == expected


def test_a_daemon_that_is_away_is_a_problem_unless_a_node_is_up():
    peers, nodes = Peers(problem=AWAY), Nodes(NODE)
    assert merged(peers, Nodes()).problem is AWAY
    catalogs = merged(peers, nodes)
    assert catalogs.problem is None
    nodes.providers = ()
    assert catalogs.problem is AWAY


def test_how_old_the_peers_are_does_not_matter_while_a_node_is_up():
    nodes = Nodes(NODE)
    catalogs = merged(Peers(PEER), nodes)
    assert catalogs.age_s == 0.0
    nodes.providers = ()
    assert catalogs.age_s == merged(Peers(PEER), Nodes()).age_s == 7.0


async def test_with_peers_alone_only_they_are_asked():
    peers = Peers()
    peers.fresh = Catalog((PEER,), 4.0)
    assert await merged(peers, Nodes()).refresh_if_stale() is peers.fresh


async def test_peers_and_nodes_are_asked_together():
    peers, nodes = Peers(), Nodes()
    peers.fresh, nodes.fresh = Catalog((PEER,), 4.0), (NODE,)
    catalogs = merged(peers, nodes)
    found = await catalogs.refresh_if_stale()
    assert found is catalogs.catalog and found.providers == (PEER, NODE)
    assert (peers.refreshes, nodes.refreshes) == (1, 1)


async def test_nodes_are_found_while_the_daemon_is_away():
    nodes = Nodes()
    nodes.fresh = (NODE,)
    found = await merged(Peers(problem=AWAY), nodes).refresh_if_stale()
    assert found.providers == (NODE,)
