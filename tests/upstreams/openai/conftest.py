"""A node, and adapters to it."""

import pytest

from lcp_gateway.upstreams.openai.adapter import OpenAIHttpUpstream
from lcp_gateway.upstreams.openai.connections import VirtualNode
from tests.support.http_node import HttpNodeThread
from tests.upstreams.openai.buying import ALL_KINDS, KEY


@pytest.fixture
def server():
    with HttpNodeThread("alpha", ("m",), api_key=KEY) as running:
        yield running


@pytest.fixture
async def opened():
    """Return a function that makes upstreams; they are closed at the end."""
    made = []

    def make(base_url, *, options=None, **node):
        node = VirtualNode("a", base_url, **{"api_key": KEY, "kinds": ALL_KINDS, **node})
        upstream = OpenAIHttpUpstream([node], **(options or {}))
        made.append(upstream)
        return upstream

    yield make
    for upstream in made:
        await upstream.close()
