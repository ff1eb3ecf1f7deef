"""``doctor`` on lnd: the node, its certificate, its macaroons and its channels."""

import re

import grpc
import pytest

from lcp_gateway.lightning.lnd.permissions import READING, SELLING
from lcp_gateway.node.config import NodeConfig, derive_key
from tests.support.lnd_standin import LN, LndStandin, Trouble, channel, in_a_thread, make_certificate

READS = [it.call.split(".")[1] for it in READING]
SELLS = [it.call.split(".")[1] for it in SELLING]


@pytest.fixture
def at(node):
    return ("--lcpd-grpc-addr", node.address)


@pytest.fixture
def lnd(tmp_path):
    """The lnd of the node that pays, with one channel."""
    folder = tmp_path / "lnd"
    folder.mkdir()
    standin = LndStandin(folder, key=derive_key(NodeConfig().seed, "node"))
    standin.channels.append(channel(50_000, reserve_sat=1_000))
    standin.balance = LN.ChannelBalanceResponse(
        local_balance=LN.Amount(msat=50_000_000), remote_balance=LN.Amount(msat=70_000_000)
    )
    with in_a_thread(standin):
        yield standin


def flags(lnd, *, macaroon=None, **changes):
    address = lnd.address
    named = {
        "lnd-grpc-addr": address.target,
        "lnd-tls-cert": address.tls_cert,
        "lnd-macaroon-file": macaroon or lnd.bake("reads", *READS),
        **{name.replace("_", "-"): value for name, value in changes.items()},
    }
    return [part for name, value in named.items() for part in (f"--{name}", str(value))]


def line(outcome, name):
    """Return the doctor's line about a subject, with the advice below it."""
    (found,) = re.findall(rf"^((?:ok  |fail)  {name:14} .*(?:\n      .*)*)", outcome.out, re.MULTILINE)
    return found


def test_lnd_is_asked_how_it_is_and_gives_the_network(run, at, lnd):
    outcome = run("doctor", *at, *flags(lnd))
    assert outcome.code == 0, outcome.out
    assert "ok    lnd            standin 0.20.0-beta on regtest, block 101, synced" in outcome.out
    assert "1 active, 0 not" in outcome.out
    assert "49,000.000 sat at most in one payment" in outcome.out
    assert "terms and invoice hold\n" in outcome.out
    assert line(outcome, "lnd node").endswith("the one that the daemon pays with")
    assert line(outcome, "lnd macaroon").endswith("lnd_macaroon_file allows all that is needed")


def test_an_lnd_of_another_node_is_found(run, at, tmp_path):
    """Regression: no problem was reported."""
    (tmp_path / "other").mkdir()
    other = LndStandin(tmp_path / "other")
    other.channels.append(channel(50_000))
    with in_a_thread(other):
        outcome = run("doctor", *at, *flags(other))
    assert outcome.code == 1
    told = line(outcome, "lnd node")
    assert told.startswith("fail") and other.identity in told and "lnd_grpc_addr" in told


def test_a_macaroon_that_only_reads_makes_no_invoices_and_the_doctor_says_so(run, at, lnd):
    """Regression: with auth = accounts and the read macaroon alone, every top-up failed."""
    outcome = run("doctor", *at, *flags(lnd), "--auth", "accounts")
    assert outcome.code == 1
    told = line(outcome, "lnd macaroon")
    assert told.startswith("fail")
    assert "Lightning.AddInvoice (invoices:write, for top-ups)" in told
    assert "SubscribeInvoices (invoices:read" in told and "ListPayments (" not in told
    baked = next(it for it in told.splitlines() if "bakemacaroon" in it)
    assert "uri:/lnrpc.Lightning/AddInvoice" in baked
    assert "uri:/routerrpc.Router/TrackPaymentV2" in baked
    assert lnd.invoices == []


def test_a_macaroon_for_invoices_beside_the_one_that_reads_is_tried_by_itself(run, at, lnd):
    both = {"lnd_invoice_macaroon_file": lnd.bake("sells", *SELLS)}
    outcome = run("doctor", *at, *flags(lnd, **both), "--auth", "accounts")
    assert outcome.code == 0, outcome.out
    assert "lnd_invoice_macaroon_file allows all that is needed" in outcome.out
    assert lnd.invoices == []


@pytest.mark.parametrize("lacking", SELLS)
def test_each_call_that_selling_takes_is_missed(run, at, lnd, lacking):
    sells = lnd.bake("sells", *(it for it in SELLS if it != lacking))
    outcome = run("doctor", *at, *flags(lnd, lnd_invoice_macaroon_file=sells), "--auth", "accounts")
    assert outcome.code == 1
    assert re.search(
        rf"fail  lnd macaroon .*lnd_invoice_macaroon_file: .* does not allow Lightning\.{lacking} \(", outcome.out
    )


@pytest.mark.parametrize("lacking", READS)
def test_each_call_that_reading_takes_is_missed(run, at, lnd, lacking):
    reads = lnd.bake("some", *(it for it in READS if it != lacking))
    outcome = run("doctor", *at, *flags(lnd, macaroon=reads))
    assert outcome.code == 1
    told = line(outcome, "lnd macaroon")
    assert told.startswith("fail") and f".{lacking} (" in told
    assert told.count("(offchain:read") + told.count("(info:read") == 1


def test_a_macaroon_of_another_lnd_is_not_accepted_and_said_to_be_so(run, at, lnd, tmp_path):
    strange = tmp_path / "strange.macaroon"
    strange.write_bytes(b"\x02\x01\x03lnd of another")
    outcome = run("doctor", *at, *flags(lnd, macaroon=strange))
    assert outcome.code == 1
    told = line(outcome, "lnd macaroon")
    assert f"lnd does not accept {strange}" in told and "another lnd" in told
    assert "bakemacaroon" in told


def test_a_macaroon_that_can_spend_is_warned_about(run, at, lnd):
    admin = lnd.bake("admin", *READS, *SELLS, "CheckMacaroonPermissions")
    outcome = run("doctor", *at, *flags(lnd, macaroon=admin))
    assert outcome.code == 0
    told = line(outcome, "lnd macaroon")
    assert "it can also spend" in told
    # lnd's own file must not be overwritten.
    assert "--save_to=lcp-gateway.macaroon" in told


def test_a_macaroon_that_other_users_may_read_is_warned_about(run, at, lnd):
    """lncli creates it like this."""
    reads = lnd.bake("open", *READS)
    reads.chmod(0o644)
    outcome = run("doctor", *at, *flags(lnd, macaroon=reads))
    assert outcome.code == 0
    assert f"chmod 600 {reads}" in line(outcome, "lnd macaroon")


def test_a_certificate_of_another_lnd_is_named_with_its_setting(run, at, lnd, tmp_path):
    """Regression: the wrong setting was not named."""
    (tmp_path / "wrong").mkdir()
    certificate, _ = make_certificate(tmp_path / "wrong")
    outcome = run("doctor", *at, *flags(lnd, lnd_tls_cert=certificate))
    assert outcome.code == 1
    told = line(outcome, "lnd")
    assert f"is not the one in lnd_tls_cert ({certificate})" in told
    assert "tlsextradomain" in told and "SSL" not in told


def test_a_server_without_tls_is_reported(run, at, lnd, node, tmp_path):
    with_daemon = flags(lnd, lnd_grpc_addr=node.address)
    outcome = run("doctor", *at, *with_daemon, "--preflight-timeout-s", "5s")
    assert outcome.code == 1
    assert line(outcome, "lnd").startswith("fail")


@pytest.mark.parametrize(
    ("status", "text", "says"),
    [
        (grpc.StatusCode.UNKNOWN, "wallet locked, unlock it to enable full RPC access", "unlock its wallet"),
        (
            grpc.StatusCode.UNKNOWN,
            "the RPC server is in the process of starting up, but not yet ready to accept calls",
            "wait until it has started",
        ),
        (grpc.StatusCode.UNAVAILABLE, "gone", "whether lnd runs"),
    ],
)
def test_an_lnd_that_is_still_starting_is_distinguished(run, at, lnd, status, text, says):
    lnd.trouble = Trouble(status, text)
    outcome = run("doctor", *at, *flags(lnd))
    assert outcome.code == 1
    assert says in line(outcome, "lnd")
    assert "lnd macaroon" not in outcome.out


def test_an_lnd_that_does_not_answer_is_found_and_named(run, at, lnd):
    nowhere = flags(lnd, lnd_grpc_addr="127.0.0.1:1")
    outcome = run("doctor", *at, *nowhere)
    assert outcome.code == 1
    told = line(outcome, "lnd")
    assert "lnd at 127.0.0.1:1 does not answer (UNAVAILABLE)" in told
    assert "last error" not in told and "ok    quote" in outcome.out


def test_an_lnd_that_is_behind_the_chain_or_knows_no_graph_is_found(run, at, lnd):
    lnd.info.synced_to_graph = False
    outcome = run("doctor", *at, *flags(lnd))
    assert outcome.code == 0 and "may find no route" in line(outcome, "lnd")
    lnd.info.synced_to_chain = False
    outcome = run("doctor", *at, *flags(lnd))
    assert outcome.code == 1 and "caught up with the chain" in line(outcome, "lnd")


def test_a_seller_without_inbound_liquidity_is_reported(run, at, lnd):
    lnd.balance.remote_balance.msat = 5
    both = {"lnd_invoice_macaroon_file": lnd.bake("sells", *SELLS)}
    outcome = run("doctor", *at, *flags(lnd, **both), "--auth", "accounts")
    assert outcome.code == 1
    assert "customers cannot top up" in line(outcome, "lnd inbound")


def test_the_doctor_changes_nothing_at_lnd(run, at, lnd):
    macaroon = lnd.bake("all", *READS, *SELLS)
    run("doctor", *at, *flags(lnd, macaroon=macaroon), "--auth", "accounts")
    assert not lnd.invoices and not lnd.payments
    assert not {"SendPaymentSync", "OpenChannel"} & set(lnd.calls)
