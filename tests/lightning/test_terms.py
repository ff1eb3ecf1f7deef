import json
from pathlib import Path

import pytest

from lcp_gateway.lightning.terms import terms_hash

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
        ("price_msat", -1),
        ("price_msat", 2**64),
        ("quote_expiry", 2**64),
        ("model", "\ud800"),
    ],
)
def test_what_does_not_fit_its_field_is_refused(field, wrong):
    with pytest.raises(ValueError, match=r"."):
        terms_hash(**{**BY_HAND, field: wrong})
