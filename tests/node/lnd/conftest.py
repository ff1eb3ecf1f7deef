"""Two lnds that are each other's peers."""

import pytest

from tests.support.lnd_network import LndNetwork


@pytest.fixture
async def network(tmp_path):
    made = LndNetwork(tmp_path)
    await made.add("buyer")
    await made.add("seller")
    made.connect(*made.by_identity.values())
    yield made
    for node in made.by_identity.values():
        if node._running:
            await node.stop()


@pytest.fixture
def buyer(network):
    return next(iter(network.by_identity.values()))


@pytest.fixture
def seller(network):
    return list(network.by_identity.values())[1]
