"""L402 from a client's side: a macaroon and an invoice come with the 402, the payment's preimage makes them a credential.

The client here implements bLIP 26 and the format of macaroons, and shares no code with the gateway.
"""

import base64
import hashlib
import hmac
import json
import re
import secrets
import time
from dataclasses import dataclass, replace

import pytest

from lcp_gateway.lightning.lnd.demo import DemoPaymentFailed
from tests.support.journaled import states
from tests.support.minutes import within
from tests.support.node_thread import eventually
from tests.support.wire import CHAT, Answer, document, get, post, request_bytes, wire
from tests.system.selling.seller import MARKUP, Office, charged, is_401, price, running_seller

CHALLENGE = re.compile(r'(?:L402|LSAT) macaroon="([A-Za-z0-9+/=_-]+)", ?invoice="(ln[a-z0-9]+)"')
BODY = document(CHAT, "echo-1", "hello", max_tokens=8)
BUYS_MSAT = 12_000
INVOICES = 3
# An address that has used up its invoices of a minute may have one more after this long.
ANOTHER_S = 60 / INVOICES
EXPIRY_S = 5


@dataclass(frozen=True)
class Macaroon:
    """The second binary format: a version, then fields of a type, a length and bytes, and a 0 behind each section."""

    identifier: bytes
    caveats: tuple[bytes, ...]
    signature: bytes

    @classmethod
    def read(cls, text: str) -> "Macaroon":
        data = base64.b64decode(text)
        assert data[0] == 2
        at, sections, signature = 1, [], b""
        while at < len(data):
            if data[at] == 0:
                at += 1
                continue
            kind, size, at = data[at], data[at + 1], at + 2
            if size >= 0x80:
                size, at = size - 0x80 + (data[at] << 7), at + 1
            value, at = data[at : at + size], at + size
            if kind == 2:
                sections.append(value)
            elif kind == 6:
                signature = value
        return cls(sections[0], tuple(sections[1:]), signature)

    def write(self) -> str:
        def field(kind: int, value: bytes) -> bytes:
            size = len(value)
            length = bytes([size]) if size < 0x80 else bytes([size & 0x7F | 0x80, size >> 7])
            return bytes([kind]) + length + value

        parts = [b"\x02", field(2, self.identifier), b"\0"]
        for caveat in self.caveats:
            parts += [field(2, caveat), b"\0"]
        return base64.b64encode(b"".join([*parts, b"\0", field(6, self.signature)])).decode()

    @property
    def payment_hash(self) -> bytes:
        """BLIP 26: a version of two bytes, the payment hash, an id."""
        assert self.identifier[:2] == b"\0\0" and len(self.identifier) == 66
        return self.identifier[2:34]

    def attenuated(self, caveat: bytes) -> "Macaroon":
        """Add a condition, as any holder may."""
        signature = hmac.digest(self.signature, caveat, hashlib.sha256)
        return replace(self, caveats=(*self.caveats, caveat), signature=signature)


@dataclass(frozen=True)
class Token:
    """A credential, paid or not."""

    macaroon: Macaroon
    invoice: str
    preimage: bytes = bytes(32)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"L402 {self.macaroon.write()}:{self.preimage.hex()}"}


def challenge(port: int, body: dict = BODY) -> Token:
    answer = post(port, CHAT, body)
    assert answer.status == 402, answer.body
    assert answer.error["code"] == "payment_required"
    assert answer.headers["x-should-retry"] == "false"
    assert "no-store" in answer.headers["cache-control"]
    found = CHALLENGE.fullmatch(answer.headers["www-authenticate"])
    assert found, answer.headers["www-authenticate"]
    return Token(Macaroon.read(found[1]), found[2])


def buy(served) -> Token:
    token = challenge(served.port)
    paid = served.pay(token.invoice)
    assert paid.payment_hash == token.macaroon.payment_hash
    assert paid.amount_msat == BUYS_MSAT
    return replace(token, preimage=paid.preimage)


def ask(port: int, token: Token, model: str = "echo-1") -> Answer:
    return post(port, CHAT, {**BODY, "model": model}, token.headers)


def account_of(token: Token) -> str:
    (account,) = [caveat for caveat in token.macaroon.caveats if b"acct_" in caveat]
    return account.decode().partition("=")[2]


@pytest.fixture(scope="module")
def served():
    with running_seller(l402="true", l402_msat=BUYS_MSAT, l402_invoices_per_minute=1_000) as running:
        yield running
        running.office.is_in_order()


def test_a_token_is_good_until_its_balance_is_gone_and_again_when_it_is_filled(served):
    token = buy(served)
    left = BUYS_MSAT
    for _ in range(30):
        answer = ask(served.port, token)
        if answer.status != 200:
            break
        left -= charged(answer)
        assert charged(answer) == MARKUP.charge_msat(price(answer))
        # The same token can be used repeatedly.
        assert int(answer.headers["x-lcp-balance-msat"]) == left
    assert answer.status == 402 and answer.error["code"] == "insufficient_balance"
    reported = answer.error["lcp"]
    assert reported["balance_msat"] == left < reported["required_msat"]
    served.pay(reported["topup"]["payment_request"])

    def answered() -> bool:
        return ask(served.port, token).status == 200

    eventually(answered)


def test_a_challenge_that_was_paid_is_good_at_once_and_for_streams_and_models_too(served):
    token = buy(served)
    body = {**BODY, "stream": True}
    answer = post(served.port, CHAT, body, token.headers)
    assert answer.status == 200 and answer.blocks[-1][1] == "[DONE]"
    assert get(served.port, "/v1/models", token.headers).status == 200
    for scheme in ("LSAT", "l402"):
        value = token.headers["Authorization"].replace("L402", scheme, 1)
        assert get(served.port, "/v1/models", {"Authorization": value}).status == 200


def test_a_token_opens_its_own_wallet_and_neither_administration_nor_metrics(served):
    token = buy(served)
    assert get(served.port, "/api/wallet", token.headers).json["balance_msat"] == BUYS_MSAT
    for path in ("/api/admin/accounts", "/api/admin/audit", "/metrics"):
        assert get(served.port, path, token.headers).status == 403


def test_an_unpaid_token_is_refused(served):
    token = challenge(served.port)
    assert is_401(ask(served.port, token))
    assert is_401(ask(served.port, replace(token, preimage=secrets.token_bytes(32))))
    entries = served.office.is_in_order()["entries"]
    served.pay(token.invoice)
    # Also after the payment the preimage is required.
    assert is_401(ask(served.port, token))
    eventually(lambda: served.office.is_in_order()["entries"] == entries + 2)


def test_an_invoice_is_paid_once(served):
    token = buy(served)
    with pytest.raises(DemoPaymentFailed):
        served.pay(token.invoice)
    assert ask(served.port, token).status == 200


def test_parts_of_two_tokens_are_refused(served):
    one, other = buy(served), buy(served)
    assert is_401(ask(served.port, replace(one, preimage=other.preimage)))
    assert is_401(ask(served.port, replace(other, preimage=one.preimage)))
    # The macaroon of one with the account of the other, and the other way round.
    for mine, theirs in ((one, other), (other, one)):
        forged = replace(mine.macaroon, caveats=theirs.macaroon.caveats)
        assert is_401(ask(served.port, replace(mine, macaroon=forged)))
        forged = replace(mine.macaroon, identifier=theirs.macaroon.identifier)
        assert is_401(ask(served.port, replace(mine, macaroon=forged)))
    assert ask(served.port, one).status == ask(served.port, other).status == 200


def test_an_account_cannot_be_changed_by_adding_a_caveat(served):
    rich, poor = buy(served), buy(served)
    (theirs,) = [caveat for caveat in rich.macaroon.caveats if b"acct_" in caveat]
    before = int(ask(served.port, rich).headers["x-lcp-balance-msat"])
    answer = ask(served.port, replace(poor, macaroon=poor.macaroon.attenuated(theirs)))
    assert is_401(answer)
    after = ask(served.port, rich)
    assert int(after.headers["x-lcp-balance-msat"]) == before - charged(after)


def test_caveats_only_narrow(served):
    token = buy(served)

    def with_caveat(caveat: bytes) -> Answer:
        return ask(served.port, replace(token, macaroon=token.macaroon.attenuated(caveat)))

    now = int(time.time())
    assert with_caveat(b"something_unknown=1").status == 200
    assert is_401(with_caveat(b"expires_at=%d" % (now - 5)))
    assert with_caveat(b"expires_at=%d" % (now + 100)).status == 200


@pytest.mark.parametrize("part", ["identifier", "signature", "caveats"])
def test_a_macaroon_that_was_altered_in_any_bit_is_refused(served, part):
    token = buy(served)
    before = getattr(token.macaroon, part)
    for at in range(0, len(before) if part != "caveats" else len(before[0]), 7):
        if part == "caveats":
            first = bytearray(before[0])
            first[at] ^= 1
            altered = (bytes(first), *before[1:])
        else:
            altered = bytearray(before)
            altered[at] ^= 1
            altered = bytes(altered)
        forged = replace(token.macaroon, **{part: altered})
        assert is_401(ask(served.port, replace(token, macaroon=forged)))
    if part == "caveats":
        for fewer in (before[1:], before[:-1], before[::-1]):
            forged = replace(token.macaroon, caveats=fewer)
            assert is_401(ask(served.port, replace(token, macaroon=forged)))


@pytest.mark.parametrize(
    "value",
    [
        "L402",
        "L402 ",
        "L402 :",
        "L402 abc:def",
        "L402 " + "A" * 3_000 + ":" + "0" * 64,
        "L402 AgJCAAB6:" + "0" * 64,
        "L402 \u00e9:" + "0" * 64,
        "LSAT AgI=:" + "g" * 64,
    ],
)
def test_malformed_credentials_are_refused_like_wrong_ones(served, value):
    answer = post(served.port, CHAT, BODY, {"Authorization": value})
    assert is_401(answer)
    assert "www-authenticate" in answer.headers


def test_a_client_with_a_wrong_key_gets_no_invoice(served):
    assert is_401(post(served.port, CHAT, BODY, {"Authorization": "Bearer lcpg_wrong"}))
    assert is_401(get(served.port, "/v1/models"))
    assert is_401(get(served.port, "/api/wallet"))
    assert is_401(post(served.port, f"/api/agent/wrong{CHAT}", BODY))


def test_an_expired_token_is_refused_as_not_valid():
    with running_seller(l402="true", l402_msat=BUYS_MSAT, l402_expiry_s=EXPIRY_S) as running:

        def used_in_time() -> Token:
            token = buy(running)
            assert ask(running.port, token).status == 200
            return token

        # A token has its end in whole seconds.
        token = within(EXPIRY_S - 1, used_in_time)
        eventually(lambda: is_401(ask(running.port, token)))
        assert running.office.balance(account_of(token))["balance_msat"] > 0
        # A client cannot request a longer one.
        later = token.macaroon.attenuated(b"expires_at=%d" % (int(time.time()) + 1_000))
        assert is_401(ask(running.port, replace(token, macaroon=later)))


def test_a_token_outlives_a_gateway_and_is_worth_nothing_at_another(served, tmp_path):
    journal = str(tmp_path / "journal.db")
    settings = {"l402": "true", "l402_msat": BUYS_MSAT, "journal_url": journal}
    with running_seller(**settings) as running:
        token = buy(running)
        answer = ask(running.port, token)
        left = int(answer.headers["x-lcp-balance-msat"])
        # Killed before it is written that the answer was delivered, the gateway would give the charge back.
        eventually(lambda: states(tmp_path / "journal.db")[answer.headers["x-lcp-job-id"]] == "delivered")
        running.running.process.kill()
        running.running.process.wait(60)
    with running_seller(**settings) as running:
        again = ask(running.port, token)
        assert int(again.headers["x-lcp-balance-msat"]) == left - charged(again)
        Office(running.port).is_in_order()
    assert is_401(ask(served.port, token))


def test_strangers_cannot_have_invoices_made_without_end():
    """Each costs lnd a permanent row, and its client has no credential."""

    def with_a_new_gateway() -> None:
        with running_seller(l402="true", l402_invoices_per_minute=INVOICES) as running:
            answers = [post(running.port, CHAT, BODY) for _ in range(12)]
            assert [answer.status for answer in answers[:3]] == [402] * 3
            assert len(running.running.events("invoice")) <= 3
            assert {answer.status for answer in answers[3:]} == {429}
            assert int(answers[-1].headers["retry-after"]) >= 1

    within(ANOTHER_S, with_a_new_gateway)


def test_a_strangers_flood_keeps_no_other_stranger_and_no_customer_away():
    """Once, after a thousand invoices of one stranger, every other client got 429 for an hour."""

    def with_a_new_gateway() -> None:
        with running_seller(
            l402="true", l402_invoices_per_minute=INVOICES, max_requests_per_minute=20, trusted_proxies="127.0.0.1"
        ) as running:

            def stranger(address, path=CHAT):
                return post(running.port, path, BODY, {"X-Forwarded-For": address})

            with wire(running.port) as connection:
                flood = []
                for number in range(60):
                    headers = {"X-Forwarded-For": f"2001:db8:1:1::{number:x}"}
                    connection.send(request_bytes("POST", CHAT, json.dumps(BODY).encode(), headers))
                    flood.append(connection.answer())
            assert [answer.status for answer in flood] == [402] * 3 + [429] * 57
            for path in ("/no/such/path/completions", "/v1/chat/completions/x/completions"):
                assert stranger("192.0.2.9", path).status == 401
            assert len(running.running.events("invoice")) == 3
            for address in ("2001:db8:1:2::1", "192.0.2.1"):
                assert stranger(address).status == 402
            customer = Office(running.port).customer(1_000_000)
            for _ in range(5):
                assert customer.ask().status == 200

    within(ANOTHER_S, with_a_new_gateway)


def test_the_token_of_a_deleted_account_buys_nothing_more(served):
    """Once it bought 41 more times."""
    token = buy(served)
    assert ask(served.port, token).status == 200
    assert served.office.delete(f"accounts/{account_of(token)}").status in {200, 204}
    quoted = len(served.running.events("quote"))
    for _ in range(3):
        assert is_401(ask(served.port, token))
    assert is_401(get(served.port, "/api/wallet", token.headers))
    assert len(served.running.events("quote")) == quoted
