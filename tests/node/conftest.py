import pytest

from lcp_gateway.node.config import FaultConfig, NodeConfig
from tests.support.node_client import running_node


@pytest.fixture
def make_node():
    """Return a function that starts a node on a free port; its arguments override the defaults."""

    def make(**settings):
        settings.setdefault("listen", "127.0.0.1:0")
        settings.setdefault("fault_settings", FaultConfig(slow_chunk_s=0.01, flood_bytes=8 << 20))
        return running_node(NodeConfig(**settings))

    return make


@pytest.fixture
async def client(make_node):
    async with make_node() as node_client:
        yield node_client


@pytest.fixture
async def faulty(make_node):
    """A client of a node with the peer Mallory, who offers a model for every fault."""
    async with make_node(faults=True) as node_client:
        yield node_client
