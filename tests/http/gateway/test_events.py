"""GET /api/events: each client is told what it may see, once, and after a break what it has missed."""

import asyncio
import json
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from aiohttp import ClientPayloadError

from lcp_gateway.accounts.models import TopupState
from lcp_gateway.http.context import RequestContext
from lcp_gateway.http.gateway.events import STREAMS_EACH, STREAMS_IN_ALL, STREAMS_OF_ACCOUNT, Surroundings
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.states import State
from lcp_gateway.store.database.engines import DatabaseUnavailable
from lcp_gateway.store.journal.writer import JournalWriter
from tests.http.front import ADMIN_KEY, front
from tests.http.gateway.bought import make_history
from tests.store.journals import charged, intent, written

EVENTS = "/api/events"
ANN, BOB = "ann inference+wallet", "bob inference+wallet"


@pytest.fixture
async def gateway(bank):
    async with front(bank) as gateway:
        gateway.made = await make_history(gateway)
        gateway.journal = JournalWriter(bank.database, on_problem=print)
        gateway.journal.start()
        yield gateway
        await gateway.journal.close()


class Reader:
    """Reads the events of one stream."""

    def __init__(self, response):
        self._response = response

    async def next(self):
        """Return the next event: its name, its data and its id; comments are ``(":", text, "")``."""
        async with asyncio.timeout(60):
            block = (await self._response.content.readuntil(b"\n\n")).decode().strip()
        if not block:
            raise EOFError
        if block.startswith((":", "retry:")):
            return (":", block, "")
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        return fields["event"], json.loads(fields["data"]), fields["id"]

    async def upto(self, name):
        """Return the data of the events up to the first of a name, by name, and the last id."""
        found = []
        while True:
            event = await self.next()
            found.append(event)
            if event[0] == name:
                return found


@asynccontextmanager
async def listening(gateway, key, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    async with gateway.client.get(EVENTS, headers={"Authorization": f"Bearer {key}", **headers}) as response:
        assert response.status == 200, await response.read()
        assert response.headers["Content-Type"].startswith("text/event-stream")
        assert response.headers["Cache-Control"] == "no-store"
        yield Reader(response)


async def poll(gateway):
    await gateway.hub.poll()


async def streams_are(hub, count):
    """Wait until so many streams are open: the gateway learns a little later that a client has left."""
    async with asyncio.timeout(60):
        while len(hub._streams) != count:
            await asyncio.sleep(0.01)


async def test_a_stream_begins_with_hello_and_the_present_state(gateway):
    async with listening(gateway, gateway.made.keys[ANN]) as ann:
        events = await ann.upto("wallet")
        assert [name for name, _, _ in events] == [":", "hello", "health", "catalog", "wallet"]
        assert events[1][1]["missed"] is False
        assert events[2][1] == {"status": "ready", "reasons": []}
        assert events[3][1] == {"models": 2, "providers": 1}
        balance = (await gateway.ask("GET", "/api/wallet", gateway.made.keys[ANN])).document
        del balance["object"]
        assert events[4][1] == balance


async def test_purchases_are_told_at_each_change_to_the_keys_that_may_see_them(gateway):
    made, journal = gateway.made, gateway.journal
    async with (
        listening(gateway, made.keys[ANN]) as ann,
        listening(gateway, made.keys["ann inference"]) as other_key,
        listening(gateway, made.keys[BOB]) as bob,
        listening(gateway, ADMIN_KEY) as admin,
    ):
        for reader in (ann, bob):
            await reader.upto("wallet")
        for reader in (other_key, admin):
            await reader.upto("catalog")
        await poll(gateway)
        now = datetime.now(UTC) + timedelta(seconds=2)
        # A poll looks back a few seconds, and what follows may take longer.
        gateway.hub.now = lambda: now
        wanted = charged("live", made.accounts["ann"], key_id=made.ids[ANN], at=now)
        states = []
        for state in (State.PAYING, State.SETTLED, State.DELIVERED):
            if state is State.PAYING:
                await journal.intend(wanted)
            else:
                journal.record(wanted.quote.job_id, state, now + timedelta(milliseconds=len(states) + 1))
                await written(journal)
            await poll(gateway)
            await poll(gateway)
            while True:
                name, data, _ = await ann.next()
                if name == "purchase" and data["job_id"] == wanted.quote.job_id.hex():
                    break
            states.append(data["state"])
            assert "price_msat" not in data and data["key_name"] == "k"
            while True:
                name, data, _ = await admin.next()
                if name == "purchase" and data["job_id"] == wanted.quote.job_id.hex():
                    break
            assert data["state"] == states[-1] and data["price_msat"] == 1_000
        assert states == ["paying", "settled", "delivered"]
        # An event for each of the others shows that nothing was told before it.
        gateway.around = Surroundings(["the daemon is away"], 2, 1)
        await poll(gateway)
        for reader, reasons in ((other_key, []), (bob, [])):
            events = await reader.upto("health")
            assert not [
                one for name, one, _ in events if name == "purchase" and one["job_id"] == wanted.quote.job_id.hex()
            ]
            assert events[-1][1] == {"status": "unavailable", "reasons": reasons}
        assert (await admin.upto("health"))[-1][1]["reasons"] == ["the daemon is away"]


async def test_a_client_that_comes_back_is_told_what_it_missed(gateway):
    made, journal = gateway.made, gateway.journal
    async with listening(gateway, made.keys[ANN]) as ann:
        last_id = (await ann.upto("wallet"))[-1][2]
    job_ids = []
    for number in range(3):
        wanted = charged(f"missed {number}", made.accounts["ann"], key_id=made.ids[ANN], at=datetime.now(UTC))
        job_ids.append(wanted.quote.job_id.hex())
        await journal.intend(wanted)
    await journal.intend(charged("not hers", made.accounts["bob"], key_id=made.ids[BOB], at=datetime.now(UTC)))
    await written(journal)
    async with listening(gateway, made.keys[ANN], Last_Event_ID=last_id) as ann:
        events = await ann.upto("health")
        assert events[1][1]["missed"] is False
        told = [one["job_id"] for name, one, _ in events if name == "purchase"]
        assert told[-3:] == job_ids
        assert all(one["key_id"].startswith("key_") for name, one, _ in events if name == "purchase")


@pytest.mark.parametrize(
    "last_id", ["0", "x", "1" * 30, "99999999999999999", str(int(datetime(2020, 1, 1, tzinfo=UTC).timestamp() * 1e6))]
)
async def test_an_id_that_is_too_old_or_none_of_ours_is_told_as_missed(gateway, last_id):
    async with listening(gateway, gateway.made.keys[ANN], Last_Event_ID=last_id) as ann:
        events = await ann.upto("health")
        assert [name for name, _, _ in events] == [":", "hello", "health"]
        assert events[1][1]["missed"] is True


async def test_topups_and_balances_are_told_when_they_change(gateway):
    made, bank = gateway.made, gateway.bank
    async with listening(gateway, made.keys["ann account"]) as ann, listening(gateway, ADMIN_KEY) as admin:
        await ann.upto("wallet")
        await admin.upto("catalog")
        wallet = bank.wallet()
        topup = await wallet.top_up(made.accounts["ann"], 5_000, "memo")
        await wallet.top_up(made.accounts["bob"], 6_000)
        await poll(gateway)
        data = (await ann.upto("topup"))[-1][1]
        assert (data["id"], data["status"]) == (topup.id, "open")
        assert "payment_request" not in data and "account_id" not in data
        assert (await admin.upto("topup"))[-1][1]["account_id"] in made.accounts.values()
        bank.invoices.pay(topup.payment_hash)
        assert (await wallet.topup(made.accounts["ann"], topup.id)).state is TopupState.SETTLED
        await poll(gateway)
        events = await ann.upto("topup")
        assert events[-1][1]["status"] == "settled" and events[-1][1]["received_msat"] == 5_000
        assert [name for name, _, _ in events if name in {"wallet", "topup"}] == ["wallet", "topup"]
        await bank.ledger.adjust(made.accounts["ann"], Msat(7), reason="r", actor="t", at=datetime.now(UTC))
        await poll(gateway)
        after = (await ann.upto("wallet"))[-1][1]
        assert after["balance_msat"] == (await bank.ledger.balance(made.accounts["ann"])).balance_msat


async def test_so_many_streams_of_one_key(gateway):
    key = gateway.made.keys[ANN]
    readers = [listening(gateway, key) for _ in range(STREAMS_EACH)]
    for reader in readers:
        await reader.__aenter__()
    refused = await gateway.ask("GET", EVENTS, key)
    assert (refused.status, refused.code, refused.headers["retry-after"]) == (429, "too_many_streams", "15")
    async with listening(gateway, gateway.made.keys[BOB]):
        pass
    await readers.pop().__aexit__(None, None, None)
    for reader in readers:
        await reader.__aexit__(None, None, None)


async def test_no_account_keeps_others_out_and_no_customer_the_operator(gateway):
    hub, made = gateway.hub, gateway.made
    async with listening(gateway, made.keys[ANN]):
        (stream,) = hub._streams
    await streams_are(hub, 0)
    _own, ann, customers = stream.counted

    def of_customers(number, account):
        return [hub.open(stream.view, (object(), account(one), customers)) for one in range(number)]

    opened = of_customers(STREAMS_OF_ACCOUNT, lambda _number: ann)
    for label in (ANN, "ann account"):
        assert (await gateway.ask("GET", EVENTS, made.keys[label])).code == "too_many_streams", (
            "another key is of no use"
        )
    async with listening(gateway, made.keys[BOB]):
        opened += of_customers(STREAMS_IN_ALL - len(hub._streams), lambda number: number)
    await streams_are(hub, STREAMS_IN_ALL - 1)
    opened += of_customers(1, lambda _number: "one more")
    assert (await gateway.ask("GET", EVENTS, made.keys[BOB])).code == "too_many_streams"
    async with listening(gateway, ADMIN_KEY) as admin:
        await admin.upto("catalog")
    for one in opened:
        hub.close(one)
    await streams_are(hub, 0)
    assert not hub._open, "nothing is counted for ever"


async def test_the_reads_with_which_streams_begin_are_bounded_as_others_of_a_caller(bank, monkeypatch):
    async with front(bank, api_per_caller=1) as gateway:
        key = await gateway.key(await bank.customer())
        waiting = asyncio.Event()

        async def slow(_hub, _stream, _last_id):
            waiting.set()
            await asyncio.sleep(3600)

        monkeypatch.setattr(type(gateway.hub), "begin", slow)
        first = asyncio.create_task(gateway.ask("GET", EVENTS, key))
        await asyncio.wait_for(waiting.wait(), 60)
        assert (await gateway.ask("GET", EVENTS, key)).code == "rate_limit_exceeded"
        first.cancel()
        await asyncio.wait([first])


async def test_a_head_opens_no_stream(gateway):
    async with gateway.client.head(EVENTS, headers={"Authorization": f"Bearer {ADMIN_KEY}"}) as response:
        assert response.status == 405


async def test_a_stream_ends_where_it_cannot_be_checked_whether_its_caller_is_admitted(gateway, monkeypatch):
    """An error in the middle of a stream must not become another response within its body."""
    async with listening(gateway, gateway.made.keys[ANN]) as ann:
        await ann.upto("wallet")

        async def away(_context):
            raise DatabaseUnavailable("away")

        monkeypatch.setattr(RequestContext, "still_admitted", away)
        for stream in gateway.hub._streams:
            stream.tell("health", {"status": "ready", "reasons": []}, 1)
        with pytest.raises((ClientPayloadError, ConnectionError)):
            while True:
                event = await ann.next()
                assert "HTTP/1.1" not in str(event)


async def test_a_ping_comes_in_silence_and_the_stream_ends_with_the_gateway(bank):
    async with front(bank, ping_s=0.05) as gateway:
        async with listening(gateway, ADMIN_KEY) as admin:
            assert (await admin.upto("catalog"))[0][1] == "retry: 3000"
            assert await admin.next() == (":", ": ping", "")
            for stream in gateway.hub._streams:
                stream.end()
            with pytest.raises(EOFError):
                while True:
                    await admin.next()
        assert gateway.hub._streams == set()


async def test_a_client_that_reads_nothing_is_disconnected(gateway):
    async with listening(gateway, ADMIN_KEY) as admin:
        await admin.upto("catalog")
        (stream,) = gateway.hub._streams
        for number in range(5_000):
            stream.tell("health", {"n": number}, 1)
        assert stream.is_over and len(stream.waiting) <= 2_000


async def test_more_than_a_person_can_see_is_told_as_missed(gateway):
    async with listening(gateway, ADMIN_KEY) as admin:
        await admin.upto("catalog")
        now = datetime.now(UTC)
        # A poll looks back a few seconds, and writing so many may take longer.
        gateway.hub.now = lambda: now
        await asyncio.gather(*(gateway.journal.intend(intent(f"many {n}", at=now)) for n in range(250)))
        await written(gateway.journal)
        await poll(gateway)
        events = await admin.upto("purchase")
        assert events[-2][0] == "hello" and events[-2][1]["missed"] is True


async def test_wrong_parameters_and_callers_are_refused(gateway):
    assert (await gateway.ask("GET", f"{EVENTS}?since=1", ADMIN_KEY)).code == "unknown_parameter"
    assert (await gateway.ask("GET", EVENTS, "wrong")).status == 401
