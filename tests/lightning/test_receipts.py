import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from coincurve import PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from lcp_gateway.lightning import bolt11
from lcp_gateway.lightning.checks import recompute_terms_hash
from lcp_gateway.lightning.receipts import (
    FindingOutcome,
    FindingSubject,
    Receipt,
    ReceiptError,
    document,
    is_sound,
    read_receipt,
    verify_receipt,
)
from lcp_gateway.lightning.terms import terms_hash
from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.purchase.quote import Quote
from lcp_gateway.purchase.states import VERDICTS, State, Verdict

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "quotes_regtest.json").read_text())
KEY = PrivateKey(b"\x01" * 32)
NOW = datetime(2026, 11, 21, 12, 0, 0, 250_000, tzinfo=UTC)
PREIMAGE = b"\x09" * 32
REQUEST = b'{"model":"m","messages":[1]}'
RESULT = b'{"choices":[]}'


def made(*, model="m", request=REQUEST, key=KEY, version=2, price_msat=5_000, invoice=(), **changes):
    """Return a receipt of a delivered purchase."""
    expires_at = (NOW + timedelta(seconds=300)).replace(microsecond=0)
    terms = terms_hash(
        protocol_version=version,
        job_id=b"\x11" * 32,
        price_msat=price_msat,
        quote_expiry=int(expires_at.timestamp()),
        task_kind=TaskKind.CHAT_COMPLETIONS,
        request=request,
        model=model,
    )
    payment_request = bolt11.encode(
        key,
        **{
            "network": "bcrt",
            "timestamp": int(NOW.timestamp()),
            "payment_hash": sha256(PREIMAGE).digest(),
            "payment_secret": b"\x44" * 32,
            "amount_msat": price_msat,
            "description_hash": terms,
            "expiry_s": 300,
            **dict(invoice),
        },
    )
    fields = {
        "quote": Quote(
            peer_id=KEY.public_key.format().hex(),
            job_id=b"\x11" * 32,
            price_msat=price_msat,
            expires_at=expires_at,
            terms_hash=terms,
            payment_request=payment_request,
            protocol_version=version,
        ),
        "kind": TaskKind.CHAT_COMPLETIONS,
        "model": model,
        "request_sha256": sha256(request).digest(),
        "request_bytes": len(request),
        "state": State.DELIVERED,
        "times": {State.PAYING: NOW, State.DELIVERED: NOW + timedelta(seconds=1)},
        "payment_hash": sha256(PREIMAGE).digest(),
        "preimage": PREIMAGE,
        "fee_msat": 7,
        "result_sha256": sha256(RESULT).digest(),
        "result_bytes": len(RESULT),
    }
    return Receipt(**{**fields, **changes})


def handed_out(receipt):
    """Return the document as its reader parses it."""
    return json.loads(json.dumps(document(receipt)))


def altered(path, value, receipt=None):
    fields = handed_out(receipt or made())
    *way, last = path.split(".")
    holder = fields
    for name in way:
        holder = holder[name]
    holder[last] = value
    return fields


def outcomes(findings):
    return {finding.subject: finding.outcome for finding in findings}


def failed(fields, **bytes_):
    findings = verify_receipt(fields, **bytes_)
    assert all(finding.words for finding in findings)
    return {finding.subject for finding in findings if finding.outcome is FindingOutcome.FAILED}


def test_a_receipt_of_a_delivered_purchase_holds_in_every_respect():
    findings = verify_receipt(handed_out(made()), request=REQUEST, result=RESULT)

    assert outcomes(findings) == dict.fromkeys(FindingSubject, FindingOutcome.OK)
    assert is_sound(findings)
    print("\n".join(f"{finding.outcome} {finding.subject}: {finding.words}" for finding in findings))


def test_a_receipt_reads_back_as_it_was():
    receipt = made()

    assert read_receipt(handed_out(receipt)) == receipt


def promising(**quoted):
    """Return a receipt of a purchase of version 3, whose quote states its response's type and encoding."""
    types = {"response_content_type": "text/plain", "response_content_encoding": "identity"}
    receipt = made(version=3)
    quote = replace(receipt.quote, **types)
    digest = recompute_terms_hash(quote, receipt.kind, receipt.model, receipt.request_sha256, receipt.request_bytes)
    signed = made(version=3, invoice={"description_hash": digest})
    return replace(signed, quote=replace(signed.quote, terms_hash=digest, **types, **quoted))


def test_a_receipt_of_version_3_holds_in_every_respect():
    for receipt in (made(version=3), promising()):
        fields = handed_out(receipt)
        assert read_receipt(fields) == receipt
        findings = verify_receipt(fields, request=REQUEST, result=RESULT)
        assert outcomes(findings) == dict.fromkeys(FindingSubject, FindingOutcome.OK)


def test_what_a_quote_promised_of_its_response_is_in_its_receipt_and_cannot_be_changed():
    fields = handed_out(promising())
    assert fields["terms"]["response_content_type"] == "text/plain"
    assert "response_content_type" not in handed_out(made())["terms"]
    both = {FindingSubject.TERMS_HASH, FindingSubject.DESCRIPTION_HASH}
    assert failed(altered("terms.response_content_type", "text/html", promising())) == both
    del fields["terms"]["response_content_encoding"]
    assert failed(fields) == {FindingSubject.SHAPE}
    assert failed(altered("terms.response_content_type", 5, promising())) == {FindingSubject.SHAPE}
    del fields["terms"]["response_content_type"]
    assert failed(fields) == both


def test_a_document_says_what_it_is_and_holds_no_prompt_and_no_output():
    fields = handed_out(made())

    assert (fields["object"], fields["version"]) == ("lcp.receipt", 1)
    assert (fields["state"], fields["verdict"]) == ("delivered", "settled")
    assert fields["times"]["paying"] == "2026-11-21T12:00:00.250000Z"
    assert fields["terms"]["params"] == {"model": "m"}
    assert "messages" not in json.dumps(fields) and "choices" not in json.dumps(fields)


@pytest.mark.parametrize("vector", VECTORS["quotes"], ids=lambda vector: vector["job_id"][:8])
def test_a_receipt_of_a_real_daemons_quote_holds(vector):
    request = bytes.fromhex(vector["request_hex"])
    receipt = Receipt(
        quote=Quote(
            peer_id=vector["peer_id"],
            job_id=bytes.fromhex(vector["job_id"]),
            price_msat=vector["price_msat"],
            expires_at=datetime.fromtimestamp(vector["quote_expiry"], UTC),
            terms_hash=bytes.fromhex(vector["terms_hash"]),
            payment_request=vector["payment_request"],
            protocol_version=vector["protocol_version"],
        ),
        kind=TaskKind(vector["task_kind"]),
        model=vector["model"],
        request_sha256=sha256(request).digest(),
        request_bytes=len(request),
        state=State.UNKNOWN,
        times={State.UNKNOWN: NOW},
        payment_hash=bytes.fromhex(vector["lnd_decodes"]["payment_hash"]),
    )

    findings = verify_receipt(handed_out(receipt), request=request)

    assert set(outcomes(findings).values()) == {FindingOutcome.OK}
    assert FindingSubject.PREIMAGE not in outcomes(findings)


@settings(deadline=None)
@given(
    model=st.text(st.characters(codec="utf-8"), max_size=300),
    request=st.binary(max_size=600),
    price_msat=st.integers(1, 10**12),
)
def test_terms_are_recomputed_from_the_requests_hash_as_from_its_bytes(model, request, price_msat):
    receipt = made(model=model, request=request, price_msat=price_msat)

    assert FindingSubject.TERMS_HASH not in failed(handed_out(receipt), request=request)


@pytest.mark.parametrize("length", [252, 253, 65_535, 65_536])
def test_long_model_names_are_recomputed_too(length):
    assert not failed(handed_out(made(model="m" * length)))


HASH = "ab" * 32


ALTERED = [
    ("job_id", HASH, {FindingSubject.TERMS_HASH, FindingSubject.DESCRIPTION_HASH}),
    ("price_msat", 4_999, {FindingSubject.TERMS_HASH, FindingSubject.DESCRIPTION_HASH, FindingSubject.AMOUNT}),
    ("terms_hash", HASH, {FindingSubject.TERMS_HASH}),
    ("task_kind", "openai.responses.v1", {FindingSubject.TERMS_HASH, FindingSubject.DESCRIPTION_HASH}),
    ("terms.request_sha256", HASH, {FindingSubject.TERMS_HASH, FindingSubject.DESCRIPTION_HASH}),
    ("terms.request_bytes", 1, {FindingSubject.TERMS_HASH, FindingSubject.DESCRIPTION_HASH}),
    ("terms.protocol_version", 3, {FindingSubject.TERMS_HASH, FindingSubject.DESCRIPTION_HASH}),
    ("terms.protocol_version", 65_538, {FindingSubject.TERMS_HASH, FindingSubject.DESCRIPTION_HASH}),
    (
        "terms.quote_expiry",
        1_700_000_000,
        {FindingSubject.TERMS_HASH, FindingSubject.DESCRIPTION_HASH, FindingSubject.EXPIRY},
    ),
    ("peer_id", "02" + HASH, {FindingSubject.PAYEE}),
    ("payment_request", "lnbc1", {FindingSubject.INVOICE}),
    ("payment_hash", HASH, {FindingSubject.PAYMENT_HASH}),
    ("preimage", HASH, {FindingSubject.PREIMAGE}),
    ("verdict", "none", {FindingSubject.VERDICT}),
    ("verdict", None, {FindingSubject.VERDICT}),
    ("verdict", ["settled"], {FindingSubject.VERDICT}),
    ("state", "not_paid", {FindingSubject.VERDICT, FindingSubject.PREIMAGE}),
    ("result_sha256", None, {FindingSubject.RESULT}),
    ("result_bytes", None, {FindingSubject.RESULT}),
]


def test_each_altered_field_is_found():
    found = [(path, value, failed(altered(path, value))) for path, value, _ in ALTERED]
    assert found == ALTERED


def test_an_altered_model_is_found():
    fields = handed_out(made())
    fields["model"] = fields["terms"]["params"]["model"] = "another"

    assert failed(fields) == {FindingSubject.TERMS_HASH, FindingSubject.DESCRIPTION_HASH}


@pytest.mark.parametrize(
    ("changes", "subject"),
    [
        ({"key": PrivateKey(b"\x02" * 32)}, FindingSubject.PAYEE),
        ({"invoice": {"amount_msat": 5_001}}, FindingSubject.AMOUNT),
        ({"invoice": {"amount_msat": None}}, FindingSubject.AMOUNT),
        ({"invoice": {"description_hash": b"\x22" * 32}}, FindingSubject.DESCRIPTION_HASH),
        ({"invoice": {"expiry_s": 400}}, FindingSubject.EXPIRY),
    ],
)
def test_an_invoice_of_another_deal_is_found(changes, subject):
    assert failed(handed_out(made(**changes))) == {subject}


def test_an_invoice_with_a_broken_signature_is_found():
    fields = handed_out(made())
    fields["payment_request"] = bolt11.with_signature(fields["payment_request"], bytes(65))

    [invoice] = [it for it in verify_receipt(fields) if it.subject is FindingSubject.INVOICE]
    assert (invoice.outcome, invoice.words) == (FindingOutcome.FAILED, "the invoice's signature does not hold")


def test_a_settled_purchase_without_a_preimage_is_not_proven_and_not_wrong():
    findings = verify_receipt(handed_out(made(preimage=None)))

    assert outcomes(findings)[FindingSubject.PREIMAGE] is FindingOutcome.UNPROVEN
    assert is_sound(findings)


@pytest.mark.parametrize("state", list(State))
def test_every_state_can_be_reported_without_a_preimage(state):
    receipt = made(state=state, preimage=None, fee_msat=None)

    findings = verify_receipt(handed_out(receipt))

    assert is_sound(findings)
    assert receipt.verdict is VERDICTS[state]
    assert (FindingSubject.PREIMAGE in outcomes(findings)) == (receipt.verdict is Verdict.SETTLED)


@pytest.mark.parametrize("state", [state for state in State if VERDICTS[state] is not Verdict.SETTLED])
def test_a_preimage_contradicts_any_verdict_but_settled(state):
    assert failed(handed_out(made(state=state))) == {FindingSubject.PREIMAGE}


def test_other_bytes_than_those_of_the_purchase_are_found():
    fields = handed_out(made())

    assert failed(fields, request=REQUEST + b" ") == {FindingSubject.REQUEST}
    assert failed(fields, result=RESULT[:-1]) == {FindingSubject.RESULT}


MALFORMED = [
    ("object", "lcp.quote"),
    ("version", 2),
    ("version", True),
    ("version", 1.0),
    ("job_id", "AB" * 32),
    ("job_id", "ab" * 31),
    ("job_id", 7),
    ("job_id", None),
    ("peer_id", "04" + HASH),
    ("model", "another"),
    ("model", "\ud800"),
    ("model", None),
    ("task_kind", "chat"),
    ("task_kind", ["openai.responses.v1"]),
    ("price_msat", -1),
    ("price_msat", True),
    ("price_msat", 1.5),
    ("price_msat", "5000"),
    ("price_msat", 2**64),
    ("fee_msat", -1),
    ("terms", []),
    ("terms.params", {"model": "m", "seed": 1}),
    ("terms.params", None),
    ("terms.quote_expiry", 2**63),
    ("terms.extra", 1),
    ("payment_request", None),
    ("preimage", "00"),
    ("result_bytes", "14"),
    ("state", "paid"),
    ("times", ["paying"]),
    ("times", {"paid": "2026-11-21T12:00:00Z"}),
    ("times", {"paying": "yesterday"}),
    ("times", {"paying": "2026-11-21T12:00:00"}),
    ("times", {"paying": 5}),
    ("surprise", 1),
]


def test_a_malformed_document_fails_by_its_shape_and_nothing_else_is_judged():
    def is_refused(path, value):
        fields = altered(path, value)
        try:
            read_receipt(fields)
        except ReceiptError:
            return outcomes(verify_receipt(fields)) == {FindingSubject.SHAPE: FindingOutcome.FAILED}
        return False

    assert [case for case in MALFORMED if not is_refused(*case)] == []


def test_no_field_may_be_missing():
    whole = handed_out(made())

    def is_missed(name):
        fields = {key: value for key, value in whole.items() if key != name}
        return failed(fields) == {FindingSubject.SHAPE}

    assert [name for name in whole if not is_missed(name)] == []


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=3,
)


@settings(deadline=None)
@given(
    path=st.sampled_from([*document(made()), *(f"terms.{name}" for name in document(made())["terms"])]), value=ANY_JSON
)
def test_whatever_stands_in_a_document_it_is_judged_and_never_raises(path, value):
    findings = verify_receipt(altered(path, value))

    assert findings and findings[0].subject is FindingSubject.SHAPE


@settings(deadline=None)
@given(st.dictionaries(st.text(), ANY_JSON, max_size=3))
def test_any_other_document_is_no_receipt(fields):
    assert failed(fields) == {FindingSubject.SHAPE}
