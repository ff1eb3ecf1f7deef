import os
from unittest import mock

import pytest


@pytest.fixture(scope="module", autouse=True)
def _node_of_the_module(request):
    """Run the tests of a module over the real node, the way that its ``NODE`` says."""
    with mock.patch.dict(os.environ, {"LCP_TEST_NODE": getattr(request.module, "NODE", "")}):
        yield
