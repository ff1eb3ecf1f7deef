import json
from hashlib import sha256
from pathlib import Path

import pytest

from lcp_gateway.lightning.terms import terms_hash
from lcp_gateway.node.lcp.messages import IDENTITY, JSON, Protocol
from lcp_gateway.node.lcp.table import write_params
from lcp_gateway.node.lcp.terms import Terms, hash_params, hash_terms
from lcp_gateway.node.lcp.tlv import WireError
from tests.support import lcp_vectors

QUOTES = json.loads((Path(__file__).parents[2] / "vectors" / "quotes_regtest.json").read_text())["quotes"]


def _cases(part):
    return [
        pytest.param(protocol, vector, id=f"0.{protocol.value} {vector['name']}")
        for protocol in Protocol
        for vector in lcp_vectors.encodings(protocol)[part]
    ]


def _hash(protocol, fields):
    word = "input" if protocol is Protocol.V02 else "request"
    fields = lcp_vectors.attributes("terms", fields)
    request = bytes.fromhex(fields[word])
    terms = Terms(
        protocol_version=fields["protocol_version"],
        job_id=fields["job_id"],
        price_msat=fields["price_msat"],
        quote_expiry=fields["quote_expiry"],
        task_kind=fields["task_kind"],
        request_sha256=sha256(request).digest(),
        params_sha256=hash_params(protocol, fields["params"]),
        request_bytes=len(request),
        content_type=fields[f"{word}_content_type"],
        content_encoding=fields[f"{word}_content_encoding"],
        response_content_type=fields.get("response_content_type"),
        response_content_encoding=fields.get("response_content_encoding"),
    )
    return hash_terms(protocol, terms).hex()


@pytest.mark.parametrize(("protocol", "vector"), _cases("terms"))
def test_the_daemons_hash_is_recomputed(protocol, vector):
    assert _hash(protocol, vector["fields"]) == vector["terms_hash"]


@pytest.mark.parametrize(("protocol", "vector"), _cases("terms_refused"))
def test_terms_that_the_daemon_refuses_have_no_hash(protocol, vector):
    with pytest.raises(WireError, match="type"):
        _hash(protocol, vector["fields"])


@pytest.mark.parametrize("quote", QUOTES, ids=lambda quote: quote["job_id"][:8])
def test_the_gateways_own_hash_of_version_2_is_the_same(quote):
    request = bytes.fromhex(quote["request_hex"])
    terms = Terms(
        protocol_version=quote["protocol_version"],
        job_id=bytes.fromhex(quote["job_id"]),
        price_msat=quote["price_msat"],
        quote_expiry=quote["quote_expiry"],
        task_kind=quote["task_kind"],
        request_sha256=sha256(request).digest(),
        params_sha256=hash_params(Protocol.V02, write_params(quote["model"])),
        request_bytes=len(request),
        content_type=JSON,
        content_encoding=IDENTITY,
    )
    gateways = terms_hash(
        protocol_version=terms.protocol_version,
        job_id=terms.job_id,
        price_msat=terms.price_msat,
        quote_expiry=terms.quote_expiry,
        task_kind=terms.task_kind,
        request=request,
        model=quote["model"],
    )

    assert hash_terms(Protocol.V02, terms) == gateways == bytes.fromhex(quote["terms_hash"])
