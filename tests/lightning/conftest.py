"""What the tests of lnd's clients share."""

from collections.abc import Iterator

import pytest

from lcp_gateway.lightning.lnd import channel
from tests.support.patient_grpc import connects_within_a_minute


@pytest.fixture(scope="module", autouse=True)
def _patient_connections() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(channel, "_OPTIONS", connects_within_a_minute(channel._OPTIONS))
        yield
