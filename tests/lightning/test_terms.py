import json
from hashlib import sha256
from pathlib import Path

import pytest

from lcp_gateway.lightning.terms import Terms, hash_terms, model_params, terms_hash
from lcp_gateway.node.lcp.messages import Protocol
from lcp_gateway.node.lcp.table import hash_params
from tests.support import lcp_vectors
from tests.support.cases import each_case

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "quotes_regtest.json").read_text())
BY_HAND = {
    "protocol_version": 2,
    "job_id": b"\x11" * 32,
    "price_msat": 1000,
    "quote_expiry": 500,
    "task_kind": "openai.chat_completions.v1",
    "request": b'{"model":"a","messages":[{"role":"user","content":"hi"}]}',
    "model": "a",
}


def encodings(part):
    return [
        pytest.param(protocol, vector, id=f"0.{protocol.value} {vector['name']}")
        for protocol in Protocol
        for vector in lcp_vectors.encodings(protocol)[part]
    ]


def hash_of(protocol, fields):
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


@each_case("protocol, vector", encodings("terms"))
def test_the_hash_that_the_daemon_encodes_is_recomputed(protocol, vector):
    assert hash_of(protocol, vector["fields"]) == vector["terms_hash"]


@pytest.mark.parametrize(("protocol", "vector"), encodings("terms_refused"))
def test_terms_that_the_daemon_refuses_have_no_hash(protocol, vector):
    with pytest.raises(ValueError, match="type"):
        hash_of(protocol, vector["fields"])


def test_the_types_of_a_response_are_terms_of_version_3_only_and_come_together():
    terms = {
        "protocol_version": 3,
        "job_id": b"\x11" * 32,
        "price_msat": 1,
        "quote_expiry": 2,
        "task_kind": "openai.responses.v1",
        "request_sha256": b"\x22" * 32,
        "request_bytes": 3,
        "params_sha256": sha256(model_params("m")).digest(),
    }
    both = {"response_content_type": "text/plain", "response_content_encoding": "identity"}
    assert hash_terms(3, Terms(**terms)) != hash_terms(3, Terms(**terms, **both))
    for changed in ({"response_content_type": "text/plain"}, {"response_content_encoding": "identity"}):
        with pytest.raises(ValueError, match="come together"):
            hash_terms(3, Terms(**terms, **changed))
    with pytest.raises(ValueError, match="version 2"):
        hash_terms(2, Terms(**terms, **both))
    with pytest.raises(ValueError, match="version 4"):
        hash_terms(4, Terms(**terms))


@pytest.mark.parametrize("quote", VECTORS["quotes"], ids=lambda quote: quote["job_id"][:8])
def test_the_hash_of_a_real_daemons_quote_is_recomputed(quote):
    digest = terms_hash(
        protocol_version=quote["protocol_version"],
        job_id=bytes.fromhex(quote["job_id"]),
        price_msat=quote["price_msat"],
        quote_expiry=quote["quote_expiry"],
        task_kind=quote["task_kind"],
        request=bytes.fromhex(quote["request_hex"]),
        model=quote["model"],
    )

    assert digest.hex() == quote["terms_hash"]


def test_the_hash_made_by_hand_is_the_same():
    assert terms_hash(**BY_HAND).hex() == "3ddf768b69e99198c377f718d88a4bf45b04ce9abcb0a63b167cea8fb5dce313"


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("protocol_version", 3),
        ("job_id", b"\x12" * 32),
        ("price_msat", 1001),
        ("quote_expiry", 501),
        ("task_kind", "openai.responses.v1"),
        ("request", BY_HAND["request"] + b" "),
        ("model", "b"),
    ],
)
def test_every_term_changes_the_hash(field, other):
    assert terms_hash(**{**BY_HAND, field: other}) != terms_hash(**BY_HAND)


def test_zero_and_the_largest_numbers_have_hashes_of_their_own():
    digests = {terms_hash(**{**BY_HAND, "price_msat": price}) for price in (0, 1, 255, 256, 2**64 - 1)}

    assert len(digests) == 5


@pytest.mark.parametrize("length", [0, 252, 253, 65_535, 65_536])
def test_long_model_names_take_longer_lengths(length):
    assert len(terms_hash(**{**BY_HAND, "model": "m" * length})) == 32


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("protocol_version", 65_536),
        ("protocol_version", -1),
        ("protocol_version", 4),
        ("job_id", b"\x11" * 31),
        ("task_kind", ""),
        ("price_msat", -1),
        ("price_msat", 2**64),
        ("quote_expiry", 2**64),
        ("model", "\ud800"),
    ],
)
def test_what_does_not_fit_its_field_is_refused(field, wrong):
    with pytest.raises(ValueError, match=r"."):
        terms_hash(**{**BY_HAND, field: wrong})
