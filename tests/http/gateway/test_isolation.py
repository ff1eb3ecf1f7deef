"""A customer sees nothing of another one, on any route that there is."""

import re

from tests.http.front import front
from tests.http.gateway.bought import make_history

_PLACE = re.compile(r"\{([a-z_]+)[^}]*\}")
_STREAMS = {"/api/events"}


def secrets_of(made, topup, name):
    """Return every id and name of a customer, none of which another one may be told."""
    ids = [text for label, text in made.ids.items() if label.startswith(name)]
    return [made.accounts[name], name, topup.id, topup.payment_request, *ids, *made.jobs[name]]


async def test_a_customer_sees_nothing_of_another_on_any_route(bank):
    async with front(bank) as gateway:
        made = await make_history(gateway)
        topup = await bank.wallet().top_up(made.accounts["ann"], 5_000, "ann's own")
        secret = secrets_of(made, topup, "ann")
        walked = 0
        for route in gateway.client.server.app.router.routes():
            path = route.resource.canonical
            if (
                route.method in {"HEAD", "*"}
                or not path.startswith(("/api/", "/v1/receipts"))
                or path.startswith("/api/agent")
                or path in _STREAMS
            ):
                continue
            forms = {path} if not _PLACE.search(path) else set()
            for id_ in secret if _PLACE.search(path) else ():
                forms.add(_PLACE.sub(lambda place, id_=id_: "svg" if place[1] == "form" else id_, path))
            for form in forms:
                for label in ("bob inference+wallet", "bob inference", "bob account"):
                    for query in ("", f"?account={made.accounts['ann']}", f"?key={made.ids['ann inference']}"):
                        found = await gateway.ask(
                            route.method, f"{form}{query}", made.keys[label], json={} if route.method != "GET" else None
                        )
                        walked += 1
                        text = found.body.decode(errors="replace")
                        leaked = [one for one in secret if one in text and one != "ann"]
                        assert not leaked, (route.method, form, query, label, leaked)
                        if _PLACE.search(path):
                            assert found.status in {400, 403, 404, 405}, (route.method, form, found.status)
        assert walked > 500
        assert all(key.revoked_at is None for key in (await bank.keys.page(made.accounts["ann"])).items)
        assert (await bank.accounts.get(made.accounts["ann"])).name == "ann"
