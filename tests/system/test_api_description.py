"""The description is tried against the program: schemathesis makes requests from it, good and bad ones, and finds nothing.

A few examples of each route and caller, always the same ones; ``fuzz/api.py`` tries new ones, as many as it is asked for.
"""

import pytest

from tests.support.described_api import Seller, problems_of

EXAMPLES_EACH = 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_schemathesis_finds_nothing():
    with Seller.running() as seller:
        operations = seller.operations()
        assert len(operations) > 50
        problems: list[str] = []
        for operation in operations:
            for name, key in seller.keys.items():
                problems += problems_of(operation, seller, name, key, examples=EXAMPLES_EACH)
        assert not problems, "\n\n".join(problems[:20])
        assert seller.is_sound(), "the books agree after all of it"
        assert "unexpected error" not in seller.gateway.logs
