"""What the tests of lnd's clients share."""

from collections.abc import Iterator

import pytest

from lcp_gateway.lightning.lnd import channel


@pytest.fixture(scope="module", autouse=True)
def _patient_connections() -> Iterator[None]:
    """Give a connection a minute to be made: gRPC gives up one that takes longer than this option."""
    limit = "grpc.min_reconnect_backoff_ms"
    options = tuple((name, 60_000 if name == limit else value) for name, value in channel._OPTIONS)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(channel, "_OPTIONS", options)
        yield
