import base64
import binascii
import contextlib
import hashlib
import hmac
import re
import secrets
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.accounts import l402
from lcp_gateway.accounts.l402 import (
    Credentials,
    Expired,
    Issuer,
    L402Error,
    Macaroon,
    Malformed,
    NotProven,
    challenge_header,
    mint,
    parse,
    parse_authorization,
)
from tests.support.operations import functions_called

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
LATER = NOW + timedelta(days=30)
SECRET = b"s" * 32
PREIMAGE = b"p" * 32
HASH = hashlib.sha256(PREIMAGE).digest()
INVOICE = "lnbcrt500u1pqqqqqq"

bytes32 = st.binary(min_size=32, max_size=32)
times = st.integers(1, 4_000_000_000).map(lambda s: datetime.fromtimestamp(s, UTC))


class Client:
    """A client as described by bLIP 26: it parses the challenge, pays, and sends macaroon and preimage.

    It treats macaroons as opaque base64, except that it reads the payment hash, as a careful client
    may; its parser shares no code with the gateway.
    """

    def __init__(self, wallet: dict[str, bytes]) -> None:
        self.wallet = wallet

    def answer(self, challenge: str, scheme: str = "L402") -> str:
        found = re.fullmatch(r'L402 macaroon="([A-Za-z0-9+/=]+)", invoice="([a-z0-9]+)"', challenge)
        assert found, challenge
        macaroon, invoice = found.groups()
        preimage = self.wallet[invoice]
        assert self.payment_hash(macaroon) == hashlib.sha256(preimage).digest()
        return f"{scheme} {macaroon}:{preimage.hex()}"

    @staticmethod
    def payment_hash(macaroon: str) -> bytes:
        data = base64.b64decode(macaroon, validate=True)
        # The format's version; the identifier field of 66 bytes; its version; the payment hash; the token's id.
        assert data[:5] == bytes([2, 2, 66, 0, 0])
        return data[5:37]


def issued(**changes) -> Macaroon:
    values = {"payment_hash": HASH, "account_id": "acct_1", "expires_at": LATER, **changes}
    return Issuer(SECRET).issue(**values)


def test_a_client_pays_the_challenge_once_and_is_admitted_repeatedly():
    issuer = Issuer(SECRET)
    macaroon = issuer.issue(HASH, "acct_1", LATER)
    client = Client({INVOICE: PREIMAGE})

    for scheme in ("L402", "LSAT", "l402", "lsat"):
        shown = parse_authorization(client.answer(challenge_header(macaroon, INVOICE), scheme))
        assert shown is not None
        token = issuer.verify(shown.macaroon, shown.preimage, NOW)
        assert token.payment_hash == HASH and len(token.token_id) == 32
        assert token.account_id == "acct_1"
        assert token.expires_at == LATER
        assert token.caveats == ("account=acct_1", f"expires_at={int(LATER.timestamp())}")


def test_the_chain_is_the_one_of_other_libraries():
    # The example in libmacaroons' documentation, a test vector of every implementation.
    bare = l402._bare(b"this is our super secret key; only we should know it", b"we used our secret key")
    assert bare.signature.hex() == "e3d9e02908526c4c0039ae15114115d97fdd68bf2ba379b342aaf0f617d0552f"


def test_the_bytes_are_the_second_binary_format():
    root_key, token_id = b"k" * 32, b"t" * 32
    data = mint(root_key, HASH, token_id, [("a", "b"), ("long", "x" * 200)]).to_bytes()

    identifier = b"\0\0" + HASH + token_id
    key = hmac.new(b"macaroons-key-generator".ljust(32, b"\0"), root_key, "sha256").digest()
    caveats = [b"a=b", b"long=" + b"x" * 200]
    for signed in (identifier, *caveats):
        key = hmac.new(key, signed, "sha256").digest()
    assert data == (
        b"\x02"
        + bytes([2, 66])
        + identifier
        + b"\0"
        + bytes([2, 3])
        + caveats[0]
        + b"\0"
        # 205 is 77 and one more times 128.
        + bytes([2, 0x80 | 77, 1])
        + caveats[1]
        + b"\0\0"
        + bytes([6, 32])
        + key
    )


@given(bytes32, bytes32, st.text("abc:/=", max_size=20), times, bytes32)
def test_an_issued_token_is_serialized_and_verified(preimage, token_id, account, end, secret):
    payment_hash = hashlib.sha256(preimage).digest()
    macaroon = Issuer(secret).issue(payment_hash, account, end, token_id)
    text = macaroon.to_text()
    urls = base64.urlsafe_b64encode(macaroon.to_bytes()).decode()

    assert parse(text) == parse(text.rstrip("=")) == parse(urls) == parse(urls.rstrip("="))
    shown = parse_authorization(f"L402 {text}:{preimage.hex()}")
    assert shown == Credentials(macaroon, preimage)
    token = Issuer(secret).verify(shown.macaroon, shown.preimage, end - timedelta(seconds=1))
    assert (token.token_id, token.payment_hash) == (token_id, payment_hash)
    assert (token.account_id, token.expires_at) == (account, end)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_no_byte_can_be_changed(at, flip):
    data = bytearray(issued().to_bytes())
    data[at % len(data)] ^= flip

    with pytest.raises(L402Error):
        Issuer(SECRET).verify(l402.from_bytes(bytes(data)), PREIMAGE, NOW)


@given(st.binary(max_size=1_100))
def test_garbage_is_refused_and_nothing_else_happens(data):
    text = base64.b64encode(data).decode()
    for given_text in (text, data.decode("latin-1")):
        with pytest.raises(Malformed):
            parse(given_text)
        with pytest.raises(Malformed):
            parse_authorization(f"L402 {given_text}:{PREIMAGE.hex()}")


@given(st.binary(max_size=200))
def test_garbage_in_the_right_format_is_refused(data):
    with pytest.raises(L402Error):
        Issuer(SECRET).verify(l402.from_bytes(b"\x02" + data), PREIMAGE, NOW)


@given(st.integers(0, 10_000))
def test_a_part_of_a_macaroon_is_none(end):
    data = issued().to_bytes()
    with pytest.raises(Malformed):
        l402.from_bytes(data[: end % len(data)])
    with pytest.raises(Malformed, match="follows"):
        l402.from_bytes(data + b"\0")


def test_the_preimage_of_another_payment_proves_nothing():
    for other in (b"q" * 32, b"", PREIMAGE[:31], HASH):
        with pytest.raises(NotProven):
            Issuer(SECRET).verify(issued(), other, NOW)


def test_another_token_cannot_be_taken_over_with_a_payment_of_ones_own():
    theirs = issued()
    mine_preimage = b"m" * 32
    mine = issued(payment_hash=hashlib.sha256(mine_preimage).digest(), account_id="acct_2")

    for stolen in (
        theirs,
        replace(theirs, identifier=mine.identifier),
        replace(mine, caveats=theirs.caveats),
        replace(theirs, signature=mine.signature),
        replace(mine, signature=theirs.signature),
    ):
        with pytest.raises(NotProven):
            Issuer(SECRET).verify(stolen, mine_preimage, NOW)


def test_a_token_of_another_gateway_proves_nothing():
    with pytest.raises(NotProven):
        Issuer(b"o" * 32).verify(issued(), PREIMAGE, NOW)


def test_a_token_ends_at_its_time():
    issuer = Issuer(SECRET)
    assert issuer.verify(issued(), PREIMAGE, LATER - timedelta(microseconds=1))
    with pytest.raises(Expired):
        issuer.verify(issued(), PREIMAGE, LATER)


def test_only_the_holder_of_a_token_is_told_that_it_has_expired():
    with pytest.raises(NotProven):
        Issuer(SECRET).verify(issued(), b"q" * 32, LATER)


def test_a_holder_can_end_a_token_earlier_and_not_later():
    issuer = Issuer(SECRET)
    sooner, much_later = NOW + timedelta(hours=1), LATER + timedelta(days=300)
    for name in ("expires_at", " expires_at "):
        lent = issued().with_caveat(name, f"{int(sooner.timestamp())}")
        stretched = lent.with_caveat(name, f" {int(much_later.timestamp())}")

        assert issuer.verify(stretched, PREIMAGE, NOW).expires_at == sooner
        with pytest.raises(Expired):
            issuer.verify(stretched, PREIMAGE, sooner)


def test_a_holder_cannot_name_another_account():
    issuer = Issuer(SECRET)
    with pytest.raises(NotProven):
        issuer.verify(issued().with_caveat("account", "acct_2"), PREIMAGE, NOW)
    assert issuer.verify(issued().with_caveat("account", "acct_1"), PREIMAGE, NOW)


def test_a_macaroon_without_the_gateways_own_caveats_names_no_account():
    issuer = Issuer(SECRET)
    token_id = b"t" * 32
    root_key = issuer._root_key(b"\0\0" + HASH + token_id)
    end = ("expires_at", "9999999999")
    for caveats in ([], [("account", "acct_2")], [end, ("account", "acct_2")], [end]):
        with pytest.raises(NotProven):
            issuer.verify(mint(root_key, HASH, token_id, caveats), PREIMAGE, NOW)


@pytest.mark.parametrize("end", ["", "soon", "-1", "1e9", "٣", "999999999999", "1 2"])
def test_an_end_that_makes_no_sense_ends_it(end):
    with pytest.raises(NotProven):
        Issuer(SECRET).verify(issued().with_caveat("expires_at", end), PREIMAGE, NOW)


def test_unknown_caveats_are_ignored():
    lent = issued().with_caveat("services", "loop:0").with_caveat("ü", "")
    assert Issuer(SECRET).verify(lent, PREIMAGE, NOW).caveats[2:] == ("services=loop:0", "ü=")


def test_a_caveat_cannot_be_removed_or_moved():
    lent = issued().with_caveat("expires_at", "1").with_caveat("note", "x")
    for caveats in (lent.caveats[:2], lent.caveats[::-1], (*lent.caveats[:2], lent.caveats[3])):
        with pytest.raises(NotProven):
            Issuer(SECRET).verify(replace(lent, caveats=caveats), PREIMAGE, NOW)


def test_too_many_caveats_or_bytes_are_refused():
    many = issued()
    for number in range(l402.MAX_CAVEATS - 2):
        many = many.with_caveat("n", str(number))
    assert parse(many.to_text()) == many
    with pytest.raises(Malformed, match="too many"):
        parse(many.with_caveat("n", "x").to_text())
    with pytest.raises(Malformed, match="too large"):
        parse(issued().with_caveat("n", "x" * 1_000).to_text())
    with pytest.raises(Malformed, match="too long"):
        parse("A" * 100_000)
    with pytest.raises(Malformed, match="too long"):
        parse_authorization("L402 " + "A" * 100_000 + ":" + PREIMAGE.hex())


def test_a_third_partys_caveat_is_refused():
    plain = mint(b"k" * 32, HASH, b"t" * 32, []).to_bytes()
    head, tail = plain[:70], plain[70:]
    assert head.endswith(b"\0") and tail.startswith(b"\0\x06")
    for caveat in (b"\x02\x01a\x04\x01v\0", b"\x01\x01l\x02\x01a\x04\x01v\0"):
        with pytest.raises(Malformed, match="third party"):
            l402.from_bytes(head + caveat + tail)


def test_a_location_is_kept_and_not_signed():
    known = replace(issued(), location=b"https://example.com")
    assert parse(known.to_text()) == known
    assert Issuer(SECRET).verify(known, PREIMAGE, NOW)


@pytest.mark.parametrize("value", ["", "Bearer lcpg_x", "Basic eDp5", "L402x a:b", "L402", "lsat", "Bearer L402 a:b"])
def test_other_schemes_are_none_of_its_business(value):
    if value.lower() in {"l402", "lsat"}:
        with pytest.raises(Malformed):
            parse_authorization(value)
    else:
        assert parse_authorization(value) is None


@pytest.mark.parametrize(
    "rest",
    [
        "{m}",
        "{m}:",
        ":{p}",
        "{m}:{p}00",
        "{m}:" + "zz" * 32,
        "{m}:" + "00 " * 21 + "0",
        "{m},{m}:{p}",
        "{m}:{p}:{p}",
        "{m} :{p}",
        "mac\naroon:{p}",
    ],
)
def test_a_credential_in_another_form_is_refused_without_being_quoted(rest):
    text = issued().to_text()
    with pytest.raises(Malformed) as refused:
        parse_authorization("L402 " + rest.format(m=text, p=PREIMAGE.hex()))
    assert text[:16] not in str(refused.value) and PREIMAGE.hex() not in str(refused.value)


def test_digits_may_be_in_upper_case_and_blanks_around():
    macaroon = issued()
    shown = parse_authorization(f"  L402   {macaroon.to_text()}:{PREIMAGE.hex().upper()} ")
    assert shown == Credentials(macaroon, PREIMAGE)


@pytest.mark.parametrize("invoice", ["", 'lnbc1", x="', "lnbc1\r\nSet-Cookie: a", "LNBC1", "l" * 9_000])
def test_a_challenge_holds_nothing_but_an_invoice(invoice):
    with pytest.raises(ValueError, match="payment request"):
        challenge_header(issued(), invoice)


def test_wrong_lengths_are_refused_when_minting():
    with pytest.raises(ValueError, match="32 bytes"):
        mint(b"k" * 32, HASH[:31], b"t" * 32, [])
    with pytest.raises(ValueError, match="32 bytes"):
        mint(b"k" * 32, HASH, b"t" * 33, [])
    with pytest.raises(ValueError, match="at least 32"):
        Issuer(b"short")
    with pytest.raises(ValueError, match="zone"):
        issued(expires_at=datetime(2030, 1, 1))  # noqa: DTZ001 - that is what is refused


def test_each_token_has_its_own_id_and_key():
    assert issued().identifier != issued().identifier
    issuer = Issuer(SECRET)
    assert issuer._root_key(b"a") != issuer._root_key(b"b") != Issuer(b"o" * 32)._root_key(b"b")


def test_nothing_of_a_credential_is_shown():
    macaroon = issued()
    shown = parse_authorization(f"L402 {macaroon.to_text()}:{PREIMAGE.hex()}")
    token = Issuer(SECRET).verify(macaroon, PREIMAGE, NOW)

    text = f"{macaroon!r} {shown!r} {token!r} {Issuer(SECRET)!r}"

    for secret in (macaroon.signature, macaroon.identifier, PREIMAGE, token.token_id, SECRET):
        assert repr(secret)[2:-1] not in text
        assert binascii.hexlify(secret).decode() not in text


def test_a_wrong_signature_takes_the_same_steps_wherever_it_is_wrong():
    issuer, macaroon = Issuer(SECRET), issued()
    wrong = {
        "first": replace(macaroon, signature=bytes([macaroon.signature[0] ^ 1]) + macaroon.signature[1:]),
        "last": replace(macaroon, signature=macaroon.signature[:-1] + bytes([macaroon.signature[-1] ^ 1])),
        "random": replace(macaroon, signature=secrets.token_bytes(32)),
    }

    def steps(shown, preimage=PREIMAGE):
        def verify():
            with contextlib.suppress(NotProven):
                issuer.verify(shown, preimage, NOW)

        return functions_called(verify)

    taken = {name: steps(shown) for name, shown in wrong.items()} | {"preimage": steps(macaroon, b"q" * 32)}
    assert set(taken.values()) == {taken["first"]}, taken
    # Bytes are compared in one time, whatever they are.
    assert taken["first"].count("compare_digest") == 2
