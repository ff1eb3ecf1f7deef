"""A macaroon's permissions are determined by calls that change nothing."""

import asyncio

import grpc
import pytest

from lcp_gateway.lightning.lnd.permissions import (
    PAYING,
    READING,
    SELLING,
    MacaroonNotAccepted,
    MacaroonProbe,
    Permission,
)
from lcp_gateway.lightning.lnd.records import LndError
from tests.support.lnd_standin import LndStandin, Trouble, settled

ALL = (*READING, *SELLING, *PAYING)


def names(permissions):
    return {it.call.split(".")[1] for it in permissions}


@pytest.fixture
async def node(tmp_path):
    standin = LndStandin(tmp_path)
    await standin.start()
    yield standin
    await standin.stop()


@pytest.fixture
async def probe_of(node):
    made = []

    def make(macaroon):
        address = node.address
        probe = MacaroonProbe(type(address)(address.target, address.tls_cert, macaroon), timeout_s=60)
        made.append(probe)
        return probe

    yield make
    for probe in made:
        await probe.close()


@pytest.mark.parametrize("allowed", [names(READING), names(SELLING), names(PAYING), names(ALL), set()])
async def test_the_missing_permissions_are_those_not_in_the_macaroon(node, probe_of, allowed):
    probe = probe_of(node.bake("m", *allowed))
    assert names(await probe.missing(ALL)) == names(ALL) - allowed


async def test_a_refusal_is_seen_however_long_it_takes(node, probe_of, monkeypatch):
    """Regression: a subscription that was refused after a second, as over Tor or on a busy machine, was taken for one that is allowed."""
    admit = node.admit

    async def slowly(name, context):
        await asyncio.sleep(1.5)
        await admit(name, context)

    monkeypatch.setattr(node, "admit", slowly)
    assert names(await probe_of(node.bake("m", *names(READING))).missing(SELLING)) == names(SELLING) - names(READING)


async def test_nothing_is_changed_by_trying(node, probe_of):
    node.knows(settled(b"\x01" * 32))
    await probe_of(node.bake("m", *names(ALL))).missing(ALL)
    assert not node.invoices and len(node.payments) == 1 and not node.sent


async def test_a_macaroon_that_this_lnd_does_not_accept_is_told_apart(node, probe_of, tmp_path):
    strange = tmp_path / "strange.macaroon"
    strange.write_bytes(b"of another node")
    with pytest.raises(MacaroonNotAccepted, match="signature mismatch"):
        await probe_of(strange).missing(READING)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (grpc.StatusCode.UNAVAILABLE, "gone"),
        (grpc.StatusCode.UNKNOWN, "wallet locked, unlock it to enable full RPC access"),
        (grpc.StatusCode.UNKNOWN, "the RPC server is in the process of starting up"),
    ],
)
async def test_an_lnd_that_looked_at_no_macaroon_proves_nothing(node, probe_of, status, text):
    node.trouble = Trouble(status, text)
    with pytest.raises(LndError, match=text):
        await probe_of(node.bake("m", *names(ALL))).missing(READING)


async def test_only_a_macaroon_that_may_ask_is_known_to_spend(node, probe_of):
    assert not await probe_of(node.bake("reads", *names(READING))).may_pay()
    assert await probe_of(node.bake("admin", "CheckMacaroonPermissions")).may_pay()


def test_a_call_is_named_as_lncli_takes_it():
    assert [it.uri for it in READING][-1] == "uri:/routerrpc.Router/TrackPaymentV2"
    assert SELLING[1].uri == "uri:/lnrpc.Lightning/AddInvoice"


async def test_a_call_without_a_harmless_form_is_not_tried(node, probe_of):
    pays = Permission("Lightning.SendPaymentSync", "offchain:write", "nothing here")
    with pytest.raises(ValueError, match="SendPaymentSync"):
        await probe_of(node.bake("m")).missing([pays])
    assert node.calls == []
