import os
from unittest import mock

import pytest


@pytest.fixture(scope="module", autouse=True)
def _node_of_the_module(request):
    """Run the tests of a module with the node where its ``NODE`` says."""
    with mock.patch.dict(os.environ, {"LCP_TEST_NODE": getattr(request.module, "NODE", "")}):
        yield
