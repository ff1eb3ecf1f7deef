"""What the tests of the adapter to daemons share."""

from collections.abc import Iterator

import pytest

from lcp_gateway.upstreams.lcpd import grpcio_transport, http2_transport
from tests.support.patient_grpc import connects_within_a_minute


@pytest.fixture(scope="module", autouse=True)
def _patient_connections() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(grpcio_transport, "_OPTIONS", connects_within_a_minute(grpcio_transport._OPTIONS))
        patched.setattr(http2_transport, "_CONNECT_TIMEOUT_S", 60.0)
        yield
