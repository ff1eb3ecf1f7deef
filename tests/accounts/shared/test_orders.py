"""A held quote as gateways share it."""

from dataclasses import replace

import orjson
import pytest

from lcp_gateway.accounts.shared.orders import _packed, _unpacked
from lcp_gateway.purchase.held_quotes import quote_for
from lcp_gateway.purchase.quote import Candidate
from lcp_gateway.purchase.quoting import Offer
from tests.support.purchases import order, quote

PROMISED = {"response_content_type": "text/plain", "response_content_encoding": "identity"}


def held(**quoted):
    asked = order()
    return asked, quote_for(asked, Offer(asked, Candidate(quote().peer_id), replace(quote(), **quoted), None))


@pytest.mark.parametrize("quoted", [{}, {"protocol_version": 3}, {"protocol_version": 3, **PROMISED}])
def test_a_held_quote_keeps_its_version_and_all_of_its_terms(quoted):
    asked, kept = held(**quoted)
    assert _unpacked(_packed(asked, kept)).offer.quote == kept.offer.quote


def test_a_quote_that_a_gateway_of_before_protocol_version_3_holds_can_be_taken():
    asked, kept = held()
    facts = orjson.loads(_packed(asked, kept))
    del facts["quote"]["response"]
    assert _unpacked(orjson.dumps(facts)).offer.quote == kept.offer.quote
