"""Withdrawals of a running gateway: the demo with play money, a real client of lnd's calls, the command line, restarts."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.gateway import gateway, run_command
from tests.support.journaled import money_node, on_node
from tests.support.lnd_standin import LndStandin, channel, in_a_thread, lnd_settings
from tests.support.node_thread import eventually
from tests.support.wire import get, request_bytes, send_raw
from tests.system.selling.seller import ADMIN_KEY, Seller, bearer, running_seller, selling

PAYS_OUT = ["wallet", "withdraw"]
OPEN_HANDED = {"withdrawals": "true", "withdrawal_freeze_s": 0, "withdrawal_min_msat": 1_000}


@pytest.fixture(scope="module")
def seller():
    with running_seller(**OPEN_HANDED, withdrawal_approval_msat=500_000) as running:
        yield running


@pytest.fixture(scope="module")
def lnd(tmp_path_factory):
    standin = LndStandin(tmp_path_factory.mktemp("lnd"))
    standin.channels = [channel(10_000_000)]
    with in_a_thread(standin):
        yield standin


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gateway")


@pytest.fixture(scope="module")
def at_lnd(lnd, folder):
    """A gateway that pays withdrawals at the stand-in of lnd."""
    macaroon = lnd.bake("withdrawals", "GetInfo", "ListChannels", "TrackPaymentV2", "SendPaymentV2", "DecodePayReq")
    with money_node(folder) as node:
        settings = on_node(node, journal_url=str(folder / "journal.db"))
        pays = selling(**OPEN_HANDED, lnd_withdrawal_macaroon_file=macaroon)
        env = {**settings, **lnd_settings(lnd.address), **pays}
        with gateway(embedded=False, env=env) as running:
            yield Seller(running, "")


def demo_invoice(customer, amount_sat):
    made = customer.post("/api/wallet/demo-invoice", {"amount_sat": amount_sat})
    assert made.status == 201, made.body
    return made.json["payment_request"]


def withdraw(customer, payment_request, **more):
    return customer.post("/api/wallet/withdrawals", {"payment_request": payment_request, **more})


def eventually_is(customer, withdrawal_id, status):
    def reached():
        return customer.get(f"/api/wallet/withdrawals/{withdrawal_id}").json["status"] == status

    eventually(reached)
    return customer.get(f"/api/wallet/withdrawals/{withdrawal_id}").json


def test_play_money_is_withdrawn_from_the_embedded_node(seller):
    customer = seller.office.customer(500_000, scopes=PAYS_OUT)
    made = withdraw(customer, demo_invoice(customer, 100))
    assert made.status == 201, made.body
    assert made.json["object"] == "lcp.withdrawal"
    assert (made.json["amount_msat"], made.json["fee_limit_msat"]) == (100_000, 10_500)
    ended = eventually_is(customer, made.json["id"], "settled")
    # The embedded node's route: 1 sat and 0.01 %.
    assert (ended["fee_msat"], ended["held_msat"], ended["reason"]) == (1_010, 0, None)
    assert len(ended["preimage"]) == 64
    assert customer.balance() == {"balance_msat": 398_990, "held_msat": 0, "available_msat": 398_990}
    again = withdraw(customer, made.json["payment_request"])
    assert (again.status, again.json["id"]) == (200, made.json["id"])
    assert customer.moved()[-1] == ("withdrawal", -101_010)
    listed = customer.get("/api/wallet/withdrawals").json["data"]
    assert [it["id"] for it in listed] == [made.json["id"]]
    assert "preimage" not in seller.office.get(f"withdrawals/{made.json['id']}").json
    seller.office.is_in_order()


def test_an_invoice_without_an_amount(seller):
    customer = seller.office.customer(500_000, scopes=PAYS_OUT)
    text = demo_invoice(customer, 0)
    refused = withdraw(customer, text)
    assert (refused.status, refused.error["param"]) == (400, "amount_msat")
    made = withdraw(customer, text, amount_msat=50_000)
    assert eventually_is(customer, made.json["id"], "settled")["amount_msat"] == 50_000


def test_a_topup_of_another_account_is_paid_inside_the_ledger(seller):
    payer, receiver = seller.office.customer(500_000, scopes=PAYS_OUT), seller.office.customer()
    topup = receiver.top_up(120_000)
    made = withdraw(payer, topup["payment_request"])
    assert (made.status, made.json["status"], made.json["internal"], made.json["fee_msat"]) == (
        *(201, "settled", True),
        0,
    )
    assert receiver.get(f"/api/wallet/topups/{topup['id']}").json["status"] == "settled"
    assert (payer.balance()["balance_msat"], receiver.balance()["balance_msat"]) == (380_000, 120_000)
    assert (payer.moved()[-1], receiver.moved()[-1]) == (("transfer", -120_000), ("transfer", 120_000))
    # A wallet elsewhere pays it all the same.
    seller.pay(topup["payment_request"])
    receiver.eventually_has(balance_msat=240_000)
    seller.office.is_in_order()


def test_scopes_open_it_one_by_one(seller):
    usual, reader = seller.office.customer(500_000), seller.office.customer(500_000, scopes=["wallet"])
    text = demo_invoice(reader, 100)
    for customer in (usual, reader):
        refused = withdraw(customer, text)
        assert (refused.status, refused.error["code"]) == (403, "missing_scope")
        assert customer.get("/api/wallet/withdrawals").json["data"] == []
    node = seller.office.customer(500_000, scopes=["node"])
    for path in ("/api/wallet", "/api/wallet/withdrawals", "/v1/models"):
        assert node.get(path).status == 403
    stranger = seller.office.customer(500_000, scopes=PAYS_OUT)
    made = withdraw(stranger, text)
    assert made.status == 201
    assert usual.get(f"/api/wallet/withdrawals/{made.json['id']}").status == 404


@pytest.mark.parametrize(
    ("fields", "param"),
    [({}, "payment_request"), ({"payment_request": 7}, "payment_request"), ({"payment_request": "x", "y": 1}, "y")],
)
def test_bad_requests_name_the_field(seller, fields, param):
    customer = seller.office.customer(1_000, scopes=PAYS_OUT)
    refused = customer.post("/api/wallet/withdrawals", fields)
    assert (refused.status, refused.error["param"]) == (400, param)
    refused = withdraw(customer, "lnbcrt1nothing")
    assert (refused.status, refused.error["code"]) == (400, "invalid_invoice")
    refused = withdraw(customer, demo_invoice(customer, 100))
    assert (refused.status, refused.error["code"]) == (402, "insufficient_balance")


def test_above_the_threshold_the_operator_decides(seller):
    customer = seller.office.customer(5_000_000, scopes=PAYS_OUT)
    first, second = (withdraw(customer, demo_invoice(customer, 600)).json for _ in range(2))
    assert (first["status"], first["held_msat"]) == ("awaiting_approval", 613_000)
    waiting = seller.office.get("withdrawals?status=awaiting_approval").json["data"]
    assert {it["id"] for it in waiting} >= {first["id"], second["id"]}
    decided = seller.office.post(f"withdrawals/{first['id']}", {"decision": "approve", "reason": "known"})
    assert (decided.status, decided.json["account_id"]) == (200, customer.account_id)
    eventually_is(customer, first["id"], "settled")
    taken_back = send_raw(
        customer.port,
        request_bytes("DELETE", f"/api/wallet/withdrawals/{second['id']}", None, customer.headers),
        method="DELETE",
    )
    assert (taken_back.status, taken_back.json["status"]) == (200, "canceled")
    late = seller.office.post(f"withdrawals/{second['id']}", {"decision": "approve", "reason": "late"})
    assert (late.status, late.error["code"]) == (409, "withdrawal_state")
    bad = seller.office.post(f"withdrawals/{second['id']}", {"decision": "perhaps", "reason": "x"})
    assert (bad.status, bad.error["param"]) == (400, "decision")
    actions = [it["action"] for it in seller.office.get("log").json["data"]]
    assert "withdrawal.approve" in actions


def test_a_frozen_account_cannot_withdraw(seller):
    customer = seller.office.customer(500_000, scopes=PAYS_OUT)
    path = f"accounts/{customer.account_id}/withdrawals"
    assert seller.office.post(path, {"frozen": True, "reason": "a call"}).json["withdrawals_frozen"] is True
    refused = withdraw(customer, demo_invoice(customer, 100))
    assert (refused.status, refused.error["code"]) == (403, "withdrawals_frozen")
    assert seller.office.post(path, {"frozen": False, "reason": "fine"}).status == 200
    assert withdraw(customer, demo_invoice(customer, 100)).status == 201
    bad = seller.office.post(path, {"frozen": "yes", "reason": "x"})
    assert (bad.status, bad.error["param"]) == (400, "frozen")


def test_a_hundred_at_once_on_a_balance_for_ten(at_lnd, lnd):
    sent_before = len(lnd.sent)
    customer = at_lnd.office.customer(10 * 20_100, scopes=PAYS_OUT)
    texts = [lnd.elsewhere(10_000) for _ in range(100)]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda text: withdraw(customer, text), texts))
    accepted = [it for it in answers if it.status == 201]
    assert accepted and {it.status for it in answers} <= {201, 402, 429}
    for answer in accepted:
        eventually_is(customer, answer.json["id"], "settled")
    assert len(lnd.sent) - sent_before == len(accepted)
    balance = customer.balance()
    assert balance["held_msat"] == 0
    assert balance["balance_msat"] == 10 * 20_100 - len(accepted) * 10_007
    at_lnd.office.is_in_order()


def test_a_held_payment_is_unknown_after_lnds_restart_and_ends_by_its_hash(at_lnd, lnd):
    customer = at_lnd.office.customer(100_000, scopes=PAYS_OUT)
    lnd.payments_go = lambda _hash: "hold"
    try:
        held = [withdraw(customer, lnd.elsewhere(10_000)).json for _ in range(2)]
        hashes = [bytes.fromhex(it["payment_hash"]) for it in held]
        eventually(lambda: all(it in lnd.payments for it in hashes))
        lnd.run(lnd.kill())
        for it in held:
            eventually_is(customer, it["id"], "unknown")
        assert customer.balance()["held_msat"] == 2 * 20_050
        lnd.run(lnd.start())
        for payment_hash, settle in zip(hashes, (True, False), strict=True):
            lnd.finish(payment_hash, settle=settle)
        settled = eventually_is(customer, held[0]["id"], "settled")
        failed = eventually_is(customer, held[1]["id"], "failed")
        assert (settled["fee_msat"], failed["reason"]) == (7, "incorrect_payment_details")
        assert customer.balance() == {"balance_msat": 89_993, "held_msat": 0, "available_msat": 89_993}
    finally:
        lnd.payments_go = lambda _hash: "settle"
    at_lnd.office.is_in_order()


def test_a_node_that_does_not_cover_what_is_owed_pays_nothing(at_lnd, lnd):
    customer = at_lnd.office.customer(50_000, scopes=PAYS_OUT)
    before, lnd.channels = lnd.channels, [channel(1)]
    try:
        refused = withdraw(customer, lnd.elsewhere(10_000))
        assert (refused.status, refused.error["code"]) == (503, "withdrawals_unavailable")
        assert refused.headers["x-should-retry"] == "true"
        assert customer.balance()["held_msat"] == 0
    finally:
        lnd.channels = before


def test_the_command_line_decides_and_resolves(at_lnd, lnd, folder):
    env = {"LCP_GATEWAY_JOURNAL_URL": str(folder / "journal.db"), "LCP_GATEWAY_AUTH": "accounts"}
    customer = at_lnd.office.customer(100_000, scopes=PAYS_OUT)
    lnd.payments_go = lambda _hash: "hold"
    try:
        held = withdraw(customer, lnd.elsewhere(10_000)).json
        eventually(lambda: bytes.fromhex(held["payment_hash"]) in lnd.payments)
        listed = run_command("withdrawals", "list", "--account", customer.account_id, "--json", env=env)
        assert [it["id"] for it in json.loads(listed.stdout)] == [held["id"]], listed.stderr
        busy = run_command(*("withdrawals", "resolve", held["id"], "failed", "--why", "no", "--yes"), env=env)
        assert (busy.returncode, "this withdrawal is paying" in busy.stderr) == (1, True)
        lnd.run(lnd.restart())
        eventually_is(customer, held["id"], "unknown")
        done = run_command(
            *("withdrawals", "resolve", held["id"], "settled", "--fee-msat", "9", "--why", "lncli", "--yes"), env=env
        )
        assert done.returncode == 0, done.stderr
        assert "settled" in done.stdout
        shown = run_command("withdrawals", "show", held["id"], "--json", env=env)
        assert json.loads(shown.stdout)["fee_msat"] == 9
        frozen = run_command("withdrawals", "freeze", customer.account_id, "--why", "a call", env=env)
        assert f"withdrawals of {customer.account_id} are frozen" in frozen.stdout
        unknown = run_command("withdrawals", "approve", "wd_none", "--why", "x", env=env)
        assert (unknown.returncode, "there is no such withdrawal" in unknown.stderr) == (1, True)
    finally:
        lnd.payments_go = lambda _hash: "settle"
        lnd.finish(bytes.fromhex(held["payment_hash"]), settle=True)


def test_off_by_default(tmp_path):
    with running_seller() as running:
        customer = running.office.customer(500_000, scopes=PAYS_OUT)
        refused = withdraw(customer, demo_invoice(customer, 100))
        assert (refused.status, refused.error["code"]) == (403, "withdrawals_disabled")


def test_metrics_count_them(seller):
    customer = seller.office.customer(500_000, scopes=PAYS_OUT)
    made = withdraw(customer, demo_invoice(customer, 100))
    eventually_is(customer, made.json["id"], "settled")

    def shows(line):
        return line in get(seller.port, "/metrics", bearer(ADMIN_KEY)).body.decode()

    assert shows('lcpgateway_withdrawals_total{ended="settled"}')
    eventually(lambda: shows("lcpgateway_withdrawal_oldest_unknown_seconds 0.0"))
    eventually(lambda: shows('lcpgateway_withdrawals_open{stage="unknown"} 0.0'))
