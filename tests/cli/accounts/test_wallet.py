"""``wallet``: top-up invoices, issued by lnd or by the embedded node, and paid by that node's customer."""

import json
import os
import re
import sys
import time
import urllib.error
import urllib.request

import grpc
import pytest

from lcp_gateway.lightning.bolt11 import decode
from tests.cli.accounts_on_books import new_account, said
from tests.support.lnd_standin import LndStandin, Trouble, in_a_thread, lnd_settings
from tests.support.ports import free_port
from tests.support.written_purchases import written

WAIT_S = 90
"""A deadline for what must not hang; nothing is measured."""
ADMIN_KEY = "an-administrator-of-this-gateway"


@pytest.fixture
def lnd(tmp_path, monkeypatch):
    """A stand-in for lnd that the settings name."""
    folder = tmp_path / "lnd"
    folder.mkdir()
    with in_a_thread(LndStandin(folder)) as standin:
        for name, value in lnd_settings(standin.address).items():
            monkeypatch.setenv(name, value)
        yield standin


def test_a_top_up_is_an_invoice_of_lnd_that_is_written_down(run, journal, lnd):
    account_id = new_account(run)
    made = said(run("wallet", "topup", account_id, "50", "--memo", "tea", "--json"))
    invoice = decode(made["payment_request"])
    assert (invoice.amount_msat, invoice.description, invoice.expiry_s) == (50_000, "tea", 3600)
    assert (made["status"], made["amount_msat"], made["received_msat"]) == ("open", 50_000, None)
    assert said(run("wallet", "topups", account_id, "--json")) == [made]
    assert said(run("wallet", "show", account_id, "--json")) == {
        "account_id": account_id,
        "balance_msat": 0,
        "held_msat": 0,
        "available_msat": 0,
        "open_topups": 1,
    }
    newest, *_ = said(run("accounts", "log", "--json"))
    assert (newest["action"], newest["target"]) == ("topup.create", made["id"])
    assert newest["detail"] == {"account_id": account_id, "amount_msat": 50_000}


def test_no_hash_and_no_preimage_is_printed(run, journal, lnd):
    account_id = new_account(run)
    printed = run("wallet", "topup", account_id, "50").out
    printed += run("wallet", "topups", account_id).out
    printed += run("wallet", "topups", account_id, "--json").out
    (invoice,) = lnd.invoices
    assert invoice.payment_request in printed
    assert invoice.r_hash.hex() not in printed
    assert invoice.r_preimage.hex() not in printed


def test_a_terminal_is_shown_a_code_for_a_camera_and_a_pipe_is_not(run, journal, lnd, monkeypatch):
    account_id = new_account(run)
    assert "█" not in run("wallet", "topup", account_id, "50").out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    out = run("wallet", "topup", account_id, "50").out
    drawn = re.findall("\033\\[97;40m([█▀▄ ]+)\033\\[0m\n", out)
    sides = {len(line) for line in drawn}
    assert len(sides) == 1
    (side,) = sides
    # One character shows two modules, one above the other.
    assert len(drawn) == (side + 1) // 2
    assert side <= 80
    assert "█" not in run("wallet", "topup", account_id, "50", "--json").out


def test_the_bounds_of_top_ups_hold_here_too(run, journal, lnd):
    account_id = new_account(run)
    bounds = ("--topup-min-msat", "5000", "--topup-max-msat", "9000", "--topups-open-max", "1")
    for amount in ("4", "10", "9" * 20):
        outcome = run("wallet", "topup", account_id, amount, *bounds)
        assert (outcome.code, outcome.out) == (2, "")
        assert "an amount must be from 5000 to 9000 msat" in outcome.err
    assert run("wallet", "topup", account_id, "5", *bounds).code == 0
    outcome = run("wallet", "topup", account_id, "5", *bounds)
    assert (outcome.code, outcome.out) == (1, "")
    assert "1 top-ups are unpaid" in outcome.err
    assert len(lnd.invoices) == 1


@pytest.mark.parametrize("arguments", [["0"], ["-5"], ["1.5"], ["5", "--memo", "a\nb"], ["5", "--memo", "x" * 129]])
def test_lnd_is_not_asked_for_impossible_topups(arguments, run, journal, lnd):
    account_id = new_account(run)
    outcome = run("wallet", "topup", account_id, *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1
    assert lnd.invoices == []


def test_a_deleted_account_cannot_be_topped_up(run, journal, lnd):
    account_id = new_account(run)
    run("accounts", "delete", account_id, "--yes")
    outcome = run("wallet", "topup", account_id, "5")
    assert (outcome.code, outcome.err) == (1, "lcp-gateway: there is no such account\n")
    assert lnd.invoices == []


def test_an_lnd_that_does_not_answer_makes_no_top_up(run, journal, lnd):
    account_id = new_account(run)
    lnd.trouble = Trouble(grpc.StatusCode.UNAVAILABLE, "starting")
    outcome = run("wallet", "topup", account_id, "5")
    assert (outcome.code, outcome.out) == (1, "")
    assert "lnd cannot be asked right now: UNAVAILABLE" in outcome.err
    assert said(run("wallet", "topups", account_id, "--json")) == []


def test_an_invoice_other_than_the_one_asked_for_is_not_shown(run, journal, lnd):
    account_id = new_account(run)
    lnd.forged = {"amount_msat": 9_000_000}
    outcome = run("wallet", "topup", account_id, "5")
    assert (outcome.code, outcome.out) == (1, "")
    assert "lnd made an invoice that is not what was asked for: amount" in outcome.err


def test_without_lnd_the_missing_settings_are_named(run, journal, tmp_path):
    account_id = new_account(run)
    outcome = run("wallet", "topup", account_id, "5")
    assert (outcome.code, outcome.out) == (1, "")
    assert "top-ups are disabled: no lnd is configured; set lnd_grpc_addr" in outcome.err
    embedded = tmp_path / "state" / "lcp-gateway" / "embedded.db"
    written(embedded)
    account_id = said(run("accounts", "create", "x", "--embedded", "--json"))["id"]
    outcome = run("wallet", "topup", account_id, "5", "--embedded")
    assert (outcome.code, outcome.out) == (1, "")
    assert "set node_listen, for the gateway and here" in outcome.err


def test_top_ups_are_listed_newest_first_and_page_by_page(run, journal, lnd):
    account_id = new_account(run)
    first, second, third = (said(run("wallet", "topup", account_id, "5", "--json"))["id"] for _ in range(3))
    page = run("wallet", "topups", account_id, "--json", "--limit", "2")
    assert [one["id"] for one in said(page)] == [third, second]
    rest = run("wallet", "topups", account_id, "--json", "--after", page.err.split()[-1])
    assert [one["id"] for one in said(rest)] == [first]
    _, row, *_ = run("wallet", "topups", account_id).out.splitlines()
    assert row.split()[:5] == [third, "open", "5000", "5.000", "sat"]


def test_the_node_of_our_own_makes_the_invoice_and_its_customer_pays_it_once(run, journal, node):
    own = ("--embedded", "--node-listen", node.address)
    account_id = new_account(run)
    made = said(run("wallet", "topup", account_id, "50", *own, "--journal-url", str(journal), "--json"))
    paid = run("wallet", "pay", made["payment_request"], *own)
    assert paid.code == 0, paid.err
    assert paid.out == ("paid 50000 msat (50.000 sat) out of the node's play wallet; no real money moved\n")
    again = run("wallet", "pay", made["payment_request"], "--lcpd-grpc-addr", node.address)
    assert (again.code, again.out) == (1, "")
    assert "the invoice was not paid: invoice is already paid" in again.err


@pytest.mark.parametrize("invoice", ["lnbc1nonsense", "é", "\udcff", ""])
def test_a_text_that_is_not_an_invoice_is_not_paid(invoice, run, node):
    outcome = run("wallet", "pay", invoice, "--lcpd-grpc-addr", node.address)
    assert outcome.code in {1, 2}
    assert outcome.out == ""
    assert outcome.err.count("\n") == 1


def test_only_a_node_of_our_own_is_paid_at(run, lnd, tmp_path):
    target = lnd.address.target
    outcome = run("wallet", "pay", "lnbcrt1x", "--lcpd-grpc-addr", target)
    assert outcome.code == 1
    assert f"there is no simulated node at {target} (UNAVAILABLE)" in outcome.err
    assert lnd.calls == []
    outcome = run("wallet", "pay", "lnbcrt1x", "--lcpd-grpc-addr", target, "--lcpd-tls")
    assert outcome.code == 1
    assert "is not a simulated node" in outcome.err
    outcome = run("wallet", "pay", "lnbcrt1x", "--embedded")
    assert outcome.code == 1
    assert "set node_listen" in outcome.err


def asked(port, path, key=""):
    """Send a request to a gateway; return the status, or None while it does not answer."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", headers={"Authorization": f"Bearer {key}"} if key else {}
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def eventually(look):
    deadline = time.monotonic() + WAIT_S
    while not look():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_a_running_gateway_accepts_new_keys_at_once_and_credits_payments(start, run, tmp_path, monkeypatch):
    port = free_port()
    monkeypatch.setenv("LCP_GATEWAY_EMBEDDED", "true")
    monkeypatch.setenv("LCP_GATEWAY_NODE_LISTEN", f"unix:{tmp_path}/n.sock")
    gateway = start(
        "serve", "--http-addr", f"127.0.0.1:{port}", "--auth", "accounts",
        **os.environ, LCP_GATEWAY_ADMIN_KEY=ADMIN_KEY,
    )  # fmt: skip
    eventually(lambda: asked(port, "/readyz") == 200)
    account_id = new_account(run)
    key = said(run("keys", "create", account_id, "--json"))
    eventually(lambda: asked(port, "/v1/models", key["key"]) == 200)

    invoice = said(run("wallet", "topup", account_id, "50", "--json"))["payment_request"]
    paid = said(run("wallet", "pay", invoice, "--json"))
    assert (paid["amount_msat"], paid["real_money"]) == (50_000, False)
    eventually(lambda: said(run("wallet", "show", account_id, "--json"))["balance_msat"] == 50_000)
    (topup,) = said(run("wallet", "topups", account_id, "--json"))
    assert (topup["status"], topup["received_msat"]) == ("settled", 50_000)
    (line,) = said(run("wallet", "transactions", account_id, "--json"))
    assert (line["cause"], line["cause_id"]) == ("topup", topup["id"])

    run("keys", "revoke", key["id"])
    eventually(lambda: asked(port, "/v1/models", key["key"]) == 401)
    assert said(run("accounts", "audit", "--json"))["ok"] is True
    gateway.terminate()
    out, err = gateway.communicate(timeout=120)
    assert key["key"] not in out + err
    assert json.loads(run("accounts", "log", "--json").out)[0]["action"] == "key.revoke"
