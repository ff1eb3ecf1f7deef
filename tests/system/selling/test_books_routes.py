"""The books over HTTP are those of the command line and of the statement, to the millisatoshi, at the real program."""

import json
import time
import urllib.request

import pytest

from lcp_gateway.lightning.receipts import is_sound, verify_receipt
from tests.support.gateway import gateway, run_command

ADMIN = "an-administrators-key-of-many-characters"


def ask(served, path, key, document=None, method=None):
    request = urllib.request.Request(
        served.base_url + path,
        data=None if document is None else json.dumps(document).encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        method=method,
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def delivered(served, key, count):
    """Return the purchases once all are written as delivered, which follows the answer by a moment."""
    deadline = time.monotonic() + 60
    while True:
        found = ask(served, "/api/purchases", key)["data"]
        if [one["state"] for one in found] == ["delivered"] * count:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


@pytest.mark.slow
def test_usage_equals_spend_and_the_statement_to_the_millisatoshi(tmp_path):
    env = {
        "LCP_GATEWAY_AUTH": "accounts",
        "LCP_GATEWAY_ADMIN_KEY": ADMIN,
        "LCP_GATEWAY_MARKUP_PERCENT": "7.3",
        "LCP_GATEWAY_JOURNAL_URL": f"sqlite:///{tmp_path}/journal.db",
    }
    with gateway(env=env) as served:
        account = ask(served, "/api/admin/accounts", ADMIN, {"name": "ann"})["id"]
        ask(served, f"/api/admin/accounts/{account}/adjustments", ADMIN, {"amount_msat": 9_000_000, "reason": "gift"})
        keys = [ask(served, f"/api/admin/accounts/{account}/keys", ADMIN, {"name": f"k{n}"})["key"] for n in range(2)]
        for number in range(6):
            model = ("echo-1", "echo-mini")[number % 2]
            body = {"model": model, "max_tokens": 40 + number, "messages": [{"role": "user", "content": f"n {number}"}]}
            ask(served, "/v1/chat/completions", keys[number % 2], body)

        bought = delivered(served, keys[1], 6)[0]
        usage = ask(served, "/api/usage?by=model&period=day", ADMIN)
        spend = json.loads(run_command("spend", "--by", "model", "--json", env=env).stdout)
        assert {one["model"]: one for one in spend} == {
            one["id"]: {
                "model": one["id"],
                **{name: one[name] for name in ("purchases", "settled_msat", "unknown_msat", "undelivered_msat")},
            }
            for one in usage["groups"]
        }
        assert usage["totals"]["purchases"] == 6

        of_ann = ask(served, "/api/usage?by=key", keys[0])
        assert len(of_ann["groups"]) == 2 and {one["name"] for one in of_ann["groups"]} == {"k0", "k1"}
        lines = ask(served, "/api/wallet/transactions?limit=500", keys[0])["data"]
        assert of_ann["totals"]["charged_msat"] == -sum(
            one["amount_msat"] for one in lines if one["cause"] != "adjustment"
        )
        assert of_ann["totals"]["charged_msat"] == usage["totals"]["charged_msat"]
        assert "settled_msat" not in of_ann["totals"]

        receipt = ask(served, f"/api/purchases/{bought['job_id']}", keys[0])["receipt"]
        assert is_sound(verify_receipt(receipt))


@pytest.mark.slow
def test_without_accounts_the_user_of_this_machine_sees_all():
    with gateway() as served:
        body = {"model": "echo-1", "messages": [{"role": "user", "content": "hello"}]}
        ask(served, "/v1/chat/completions", "", body)
        (bought,) = delivered(served, "", 1)
        assert (bought["model"], bought["state"]) == ("echo-1", "delivered") and bought["price_msat"] > 0
        assert ask(served, "/api/usage", "")["totals"]["settled_msat"] == bought["cost_msat"]
        assert len(ask(served, "/api/providers", "")["data"]) > 1
        assert ask(served, "/api/admin/overview", "")["customers"] is None
        assert ask(served, "/api/budgets", "")["data"] == []
        assert ask(served, "/api/models", "")["data"][0]["lcp"]["badges"] is not None
