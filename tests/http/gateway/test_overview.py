"""/api/admin/overview and /api/providers: the operator's figures."""

from tests.http.front import ADMIN_KEY, front
from tests.http.gateway.bought import make_history
from tests.store.journals import PEER


async def test_the_overview_adds_up_and_says_what_is_not_known(bank):
    async with front(bank) as gateway:
        made = await make_history(gateway)
        found = (await gateway.ask("GET", "/api/admin/overview")).document
        assert found["customers"]["accounts"] == 2
        assert found["solvency"] == {
            "known": False,
            "owed_msat": found["customers"]["balance_msat"],
            "local_balance_msat": None,
            "is_solvent": None,
        }
        assert found["open"]["unknown"] == 8 and found["open"]["oldest_at"] is not None
        month = found["month"]
        usage = (await gateway.ask("GET", "/api/usage?period=month&since=2026-01-01")).document["totals"]
        assert month["purchases"] <= usage["purchases"]
        assert found["health"]["status"] == "ready"
        assert found["refunds_withheld"] == {"count": 0, "amount_msat": 0}
        for key in (made.keys["ann inference+wallet"], made.keys["ann account"]):
            assert (await gateway.ask("GET", "/api/admin/overview", key)).code == "missing_scope"
            assert (await gateway.ask("GET", "/api/providers", key)).code == "missing_scope"


async def test_providers_are_those_that_are_there_and_those_that_are_away(bank):
    async with front(bank) as gateway:
        await make_history(gateway)
        found = (await gateway.ask("GET", "/api/providers", ADMIN_KEY)).document
        by_id = {one["id"]: one for one in found["data"]}
        assert set(by_id) == {PEER, "node:pet", "node:away"}
        assert found["daemon"] == {"reachable": True, "problem": None}
        assert by_id["node:pet"]["badges"] == ["free", "node", "openclaw"]
        assert (by_id[PEER]["kind"], by_id[PEER]["badges"], by_id[PEER]["models"]) == ("lcp", ["lcp"], ["m", "n"])
        assert (by_id["node:away"]["up"], by_id["node:away"]["problem"]) == (False, "connection refused")
        assert by_id[PEER]["delivered"] == 17 and by_id[PEER]["undelivered"] == 8 and by_id[PEER]["unknown"] == 8
        assert by_id[PEER]["breaker"] == "closed"
