import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from coincurve import PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from lcp_gateway.lightning import bech32, bolt11, checks
from lcp_gateway.lightning.checks import Mismatch, QuoteMismatch, check_quote, mismatches
from lcp_gateway.lightning.terms import terms_hash
from lcp_gateway.purchase.order import Task, TaskKind
from lcp_gateway.purchase.quote import Quote
from lcp_gateway.purchase.states import Verdict
from tests.support.cases import each_case

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "quotes_regtest.json").read_text())
KEY = PrivateKey(b"\x01" * 32)
OTHER_KEY = PrivateKey(b"\x02" * 32)
PEER = KEY.public_key.format().hex()
NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
TASK = Task(TaskKind.CHAT_COMPLETIONS, "m", b'{"model":"m","messages":[1]}', stream=False)


def at(unix_s):
    return datetime.fromtimestamp(unix_s, UTC)


def from_vector(vector):
    task = Task(TaskKind(vector["task_kind"]), vector["model"], bytes.fromhex(vector["request_hex"]), stream=False)
    quote = Quote(
        peer_id=vector["peer_id"],
        job_id=bytes.fromhex(vector["job_id"]),
        price_msat=vector["price_msat"],
        expires_at=at(vector["quote_expiry"]),
        terms_hash=bytes.fromhex(vector["terms_hash"]),
        payment_request=vector["payment_request"],
        protocol_version=vector["protocol_version"],
    )
    return task, quote, at(vector["lnd_decodes"]["timestamp"] + 1)


def offered(*, key=KEY, price_msat=5_000, lasts_s=300, version=2, **invoice):
    """Return a quote with matching terms, and an invoice with these fields."""
    expires_at = NOW + timedelta(seconds=lasts_s)
    terms = terms_hash(
        protocol_version=version,
        job_id=b"\x11" * 32,
        price_msat=price_msat,
        quote_expiry=int(expires_at.timestamp()),
        task_kind=TASK.kind,
        request=TASK.body,
        model=TASK.model,
    )
    fields = {
        "network": "bcrt",
        "timestamp": int(NOW.timestamp()),
        "payment_hash": b"\x33" * 32,
        "payment_secret": b"\x44" * 32,
        "amount_msat": price_msat,
        "description_hash": terms,
        "expiry_s": lasts_s,
        **invoice,
    }
    return Quote(
        peer_id=PEER,
        job_id=b"\x11" * 32,
        price_msat=price_msat,
        expires_at=expires_at,
        terms_hash=terms,
        payment_request=bolt11.encode(key, **fields),
        protocol_version=version,
    )


def stating_its_payee(payment_request, signed_with):
    """Return the same invoice with the payee's key in a field of its own, signed with some key."""
    prefix, symbols = bech32.split(payment_request.encode())
    stated = bolt11._field(19, bech32.from_bytes(bytes.fromhex(PEER)))
    signed = symbols[:-104] + stated
    digest = sha256(prefix + bech32.to_padded_bytes(signed)).digest()
    signature = bech32.from_bytes(signed_with.sign_recoverable(digest, hasher=None))
    return bech32.join(prefix, signed + signature).decode()


def reason(quote, task=TASK, now=NOW, network="bcrt"):
    with pytest.raises(QuoteMismatch) as refused:
        check_quote(task, quote, now, network=network)
    assert refused.value.verdict is Verdict.NONE
    assert refused.value.quote is quote
    assert "nothing was paid" in refused.value.message
    return refused.value.reason


every_vector = pytest.mark.parametrize("vector", VECTORS["quotes"], ids=lambda vector: vector["job_id"][:8])


@every_vector
def test_a_real_daemons_quote_passes(vector):
    task, quote, now = from_vector(vector)

    invoice = check_quote(task, quote, now, network="bcrt")

    assert invoice.payment_hash.hex() == vector["lnd_decodes"]["payment_hash"]
    assert check_quote(task, quote, now) == invoice, "without a network any will do"


ALTERED = [
    ("peer_id", lambda it: PEER, Mismatch.PAYEE),
    ("peer_id", str.upper, Mismatch.PAYEE),
    ("job_id", lambda it: it[:-1] + bytes([it[-1] ^ 1]), Mismatch.TERMS_HASH),
    ("price_msat", lambda it: it + 1, Mismatch.TERMS_HASH),
    ("price_msat", lambda it: -it, Mismatch.TERMS_HASH),
    ("expires_at", lambda it: it + timedelta(seconds=1), Mismatch.TERMS_HASH),
    ("terms_hash", lambda it: it[:-1] + bytes([it[-1] ^ 1]), Mismatch.TERMS_HASH),
    ("terms_hash", lambda it: b"", Mismatch.TERMS_HASH),
    ("payment_request", lambda it: it[:-1], Mismatch.MALFORMED),
    ("payment_request", lambda it: "", Mismatch.MALFORMED),
    ("payment_request", lambda it: bolt11.with_signature(it, bytes(65)), Mismatch.SIGNATURE),
    ("protocol_version", lambda it: it + 1, Mismatch.TERMS_HASH),
    ("protocol_version", lambda it: it + 2, Mismatch.PROTOCOL_VERSION),
    ("protocol_version", lambda it: -1, Mismatch.PROTOCOL_VERSION),
]


@every_vector
def test_each_altered_field_of_a_real_quote_is_refused(vector):
    task, quote, now = from_vector(vector)
    found = []
    for field, alter, _ in ALTERED:
        altered = replace(quote, **{field: alter(getattr(quote, field))})
        found.append((field, reason(altered, task, now)))

    assert found == [(field, expected) for field, _, expected in ALTERED]


OTHER_TASKS = [
    lambda task: {"body": task.body + b" "},
    lambda task: {"body": b""},
    lambda task: {"model": task.model + "x"},
    lambda task: {"model": "\ud800"},
    lambda task: {"kind": TaskKind.RESPONSES if task.kind is TaskKind.CHAT_COMPLETIONS else TaskKind.CHAT_COMPLETIONS},
]


@every_vector
def test_a_real_quote_is_for_its_own_task_only(vector):
    task, quote, now = from_vector(vector)
    others = [replace(task, **change(task)) for change in OTHER_TASKS]

    assert [reason(quote, other, now) for other in others] == [Mismatch.TERMS_HASH] * len(others)


@every_vector
def test_the_invoice_of_another_quote_does_not_fit(vector):
    task, quote, now = from_vector(vector)
    others = [other for other in VECTORS["quotes"] if other is not vector]

    for other in others:
        swapped = replace(quote, payment_request=other["payment_request"])
        assert reason(swapped, task, now) in {Mismatch.AMOUNT, Mismatch.DESCRIPTION_HASH}


@settings(deadline=None)
@given(data=st.data())
def test_no_letter_of_an_invoice_may_change(data):
    task, quote, now = from_vector(data.draw(st.sampled_from(VECTORS["quotes"])))
    text = quote.payment_request
    place = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.characters(codec="ascii").filter(lambda it: it != text[place]))

    altered = replace(quote, payment_request=text[:place] + letter + text[place + 1 :])

    assert reason(altered, task, now) is Mismatch.MALFORMED


@settings(deadline=None)
@given(data=st.data())
def test_no_bit_of_a_request_may_change(data):
    task, quote, now = from_vector(data.draw(st.sampled_from(VECTORS["quotes"])))
    place = data.draw(st.integers(0, len(task.body) - 1))
    body = bytearray(task.body)
    body[place] ^= 1 << data.draw(st.integers(0, 7))

    assert reason(quote, replace(task, body=bytes(body)), now) is Mismatch.TERMS_HASH


@settings(deadline=None)
@given(signature=st.binary(min_size=65, max_size=65))
def test_no_made_up_signature_passes(signature):
    task, quote, now = from_vector(VECTORS["quotes"][0])
    forged = replace(quote, payment_request=bolt11.with_signature(quote.payment_request, signature))

    assert reason(forged, task, now) in {Mismatch.PAYEE, Mismatch.SIGNATURE, Mismatch.MALFORMED}


@settings(deadline=None)
@given(text=st.text(max_size=400))
def test_whatever_stands_for_an_invoice_it_is_refused_in_one_way(text):
    assert reason(replace(offered(), payment_request=text)) is Mismatch.MALFORMED


@pytest.mark.parametrize("version", [2, 3])
def test_a_quote_of_our_own_making_passes_in_its_own_version_only(version):
    quote = offered(version=version)
    assert check_quote(TASK, quote, NOW, network="bcrt").payee == PEER
    assert reason(replace(quote, protocol_version=5 - version)) is Mismatch.TERMS_HASH


@each_case(
    "invoice, expected",
    [
        ({"key": OTHER_KEY}, Mismatch.PAYEE),
        ({"network": "bc"}, Mismatch.NETWORK),
        ({"network": "tb"}, Mismatch.NETWORK),
        ({"amount_msat": 5_001}, Mismatch.AMOUNT),
        ({"amount_msat": 4_999}, Mismatch.AMOUNT),
        ({"amount_msat": None}, Mismatch.AMOUNT),
        ({"description_hash": b"\x22" * 32}, Mismatch.DESCRIPTION_HASH),
        ({"description_hash": None, "description": "soup"}, Mismatch.DESCRIPTION_HASH),
        ({"expiry_s": 306}, Mismatch.EXPIRY),
        ({"timestamp": int(NOW.timestamp()) + 6}, Mismatch.EXPIRY),
        ({"timestamp": int(NOW.timestamp()) - 300}, Mismatch.EXPIRED),
        ({"expiry_s": 0}, Mismatch.EXPIRED),
    ],
)
def test_a_properly_signed_invoice_must_fit_its_terms(invoice, expected):
    assert reason(offered(**invoice)) is expected


def test_an_invoice_may_outlive_its_quote_by_five_seconds_and_no_more():
    assert check_quote(TASK, offered(expiry_s=305), NOW)
    assert reason(offered(expiry_s=306)) is Mismatch.EXPIRY


def test_an_invoice_is_expired_from_its_last_second_on():
    quote = offered(expiry_s=60)

    assert check_quote(TASK, quote, NOW + timedelta(seconds=59.9))
    assert reason(quote, now=NOW + timedelta(seconds=60)) is Mismatch.EXPIRED


def test_an_invoice_that_states_its_payee_must_be_signed_by_it():
    quote = offered()
    honest = stating_its_payee(quote.payment_request, KEY)
    forged = stating_its_payee(quote.payment_request, OTHER_KEY)

    assert check_quote(TASK, replace(quote, payment_request=honest), NOW)
    assert reason(replace(quote, payment_request=forged)) is Mismatch.SIGNATURE


def test_every_mismatch_of_an_invoice_is_found():
    invoice = bolt11.decode(offered().payment_request)

    found = mismatches(invoice, payee="02" * 33, price_msat=1, terms_hash=b"", quote_expiry=0, network="bc")

    assert list(found) == [
        Mismatch.NETWORK,
        Mismatch.PAYEE,
        Mismatch.AMOUNT,
        Mismatch.DESCRIPTION_HASH,
        Mismatch.EXPIRY,
    ]


def test_every_mismatch_has_words():
    assert set(checks.MISMATCH_TEXTS) == set(Mismatch)


def test_neither_prompt_nor_invoice_is_in_what_a_refusal_says():
    quote = offered(amount_msat=1)
    with pytest.raises(QuoteMismatch) as refused:
        check_quote(TASK, quote, NOW)

    assert quote.payment_request not in str(refused.value)
    assert "messages" not in str(refused.value)
