"""What the tests of the adapter to daemons share."""

from collections.abc import Iterator

import pytest

from lcp_gateway.upstreams.lcpd import grpcio_transport, http2_transport


@pytest.fixture(scope="module", autouse=True)
def _patient_connections() -> Iterator[None]:
    """Give a connection a minute to be made: gRPC gives up one that takes longer than this option."""
    limit = "grpc.min_reconnect_backoff_ms"
    options = tuple((name, 60_000 if name == limit else value) for name, value in grpcio_transport._OPTIONS)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(grpcio_transport, "_OPTIONS", options)
        patched.setattr(http2_transport, "_CONNECT_TIMEOUT_S", 60.0)
        yield
