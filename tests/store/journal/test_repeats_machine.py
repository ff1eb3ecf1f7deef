"""Two processes handle the same requests and crash at any point: the journal has at most one live purchase for each key."""

import asyncio
import itertools
from dataclasses import dataclass
from datetime import datetime, timedelta

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from lcp_gateway.purchase.journal import JournalUnavailable, RequestRepeated
from lcp_gateway.purchase.records import NotUnknown
from lcp_gateway.purchase.states import TRANSITIONS, State
from lcp_gateway.store.database.engines import open_database
from lcp_gateway.store.database.schema import purchases
from lcp_gateway.store.journal.queries import Books
from lcp_gateway.store.journal.recovery import resolve, sweep
from lcp_gateway.store.journal.retention import forget_repeat_keys
from lcp_gateway.store.journal.writer import JournalWriter
from tests.store.journals import NOW, keyed, until_gone, written
from tests.support.examples import examples

RETRY_WINDOW = timedelta(seconds=120)
KEY_FOR = timedelta(hours=24)

SWEPT = {State.PAYING: State.UNKNOWN, State.SETTLED: State.UNDELIVERED}

WHICH = st.integers(0, 1)
BODIES = st.sampled_from([b"1" * 32, b"2" * 32])
# How a request is recognised: by an Idempotency-Key, a client's request id, the retry header, or not at all.
REQUESTS = st.tuples(st.sampled_from(["key", "key", "client", "retry", "plain"]), st.integers(0, 1), BODIES)
STATES = st.sampled_from([State.NOT_PAID, State.NOT_PAID, State.UNKNOWN, State.SETTLED])
steps = st.one_of(
    *([st.tuples(st.just("buy"), WHICH, REQUESTS)] * 4),
    st.tuples(st.just("race"), REQUESTS),
    *([st.tuples(st.just("update"), WHICH, st.integers(0, 11), STATES)] * 2),
    st.tuples(st.just("resolve"), st.integers(0, 11), st.booleans()),
    st.tuples(st.just("crash"), WHICH, st.none() | REQUESTS),
    st.tuples(st.just("wait"), st.sampled_from([30, 90, 121, 43_200, 86_399, 86_401])),
    st.tuples(st.just("forget_old")),
)


@dataclass
class Bought:
    """The model's record of a purchase."""

    job_id: bytes
    owner: str
    kind: str
    name: int
    body: bytes
    at: datetime
    state: State = State.PAYING

    def repeats(self, kind: str, name: int, body: bytes, at: datetime, owner: str) -> bool:
        """Return whether a request would repeat it."""
        if self.state is State.NOT_PAID:
            return False
        if kind == "key":
            return self.kind == "key" and self.name == name and at < self.at + KEY_FOR
        if kind == "client":
            same = self.kind == "client" and (self.name, self.body) == (name, body)
            return same and at < self.at + RETRY_WINDOW
        if kind == "retry":
            # A process knows its own purchases without the journal.
            return self.owner != owner and self.body == body and at <= self.at + RETRY_WINDOW
        return False


class TwoProcesses:
    """Two processes on one journal that crash and restart in turn."""

    def __init__(self, where, run):
        self._where = where
        self._run = run
        self._numbers = itertools.count()
        self.now = NOW
        self.bought: list[Bought] = []
        self.databases = [None, None]
        self.journals = [None, None]

    async def start(self, which):
        self.databases[which] = database = await open_database(self._where, gone_after_s=0)
        self.journals[which] = JournalWriter(database, on_problem=lambda _problem: None)
        self.journals[which].start()

    async def stop(self):
        for journal, database in zip(self.journals, self.databases, strict=True):
            await journal.close()
            await database.close()

    def intent(self, kind, name, body):
        return keyed(
            f"{self._run}/{next(self._numbers)}",
            f"{name}" if kind == "key" else None,
            body=body,
            client_request_id=f"{name}" if kind == "client" else None,
            retries=kind == "retry",
            at=self.now,
            key_id=f"key of run {self._run}",
        )

    def repeated(self, which, request):
        owner = self.databases[which].owner
        return [one for one in self.bought if one.repeats(*request, self.now, owner)]

    def is_bought(self, which, intent, request):
        owner = self.databases[which].owner
        self.bought.append(Bought(intent.quote.job_id, owner, *request, self.now))

    async def buy(self, which, request):
        intent, earlier = self.intent(*request), self.repeated(which, request)
        try:
            await self.journals[which].intend(intent)
        except RequestRepeated as refused:
            found = refused.earlier
            assert found.quote.job_id in {one.job_id for one in earlier}
            (one,) = (one for one in earlier if one.job_id == found.quote.job_id)
            assert found.state is one.state
            assert (found.repeat_body == intent.repeat.body) == (one.body == request[2])
        else:
            assert earlier == []
            self.is_bought(which, intent, request)

    async def race(self, request):
        intents = [self.intent(*request) for _ in range(2)]
        earlier = [self.repeated(which, request) for which in range(2)]
        came = await asyncio.gather(
            *(journal.intend(intent) for journal, intent in zip(self.journals, intents, strict=True)),
            return_exceptions=True,
        )
        assert all(one is None or isinstance(one, RequestRepeated) for one in came), came
        for which, outcome in enumerate(came):
            if outcome is None:
                assert earlier[which] == []
                self.is_bought(which, intents[which], request)
        if request[0] in {"key", "client"}:
            assert came.count(None) == (0 if earlier[0] else 1)
        elif request[0] == "retry":
            # Either may be the retry of the other.
            assert came.count(None) <= 1 or earlier == [[], []]
        else:
            assert came == [None, None]

    async def update(self, which, number, state):
        if number < len(self.bought):
            one = self.bought[number]
            self.journals[which].record(one.job_id, state, self.now)
            await written(self.journals[which])
            if state in TRANSITIONS[one.state].values():
                one.state = state

    async def resolve(self, number, is_paid):
        if number < len(self.bought):
            one = self.bought[number]
            state = State.SETTLED if is_paid else State.NOT_PAID
            try:
                resolved = await resolve(self.databases[0], one.job_id, state, self.now)
            except NotUnknown:
                assert one.state is not State.UNKNOWN
            else:
                assert one.state is State.UNKNOWN
                one.state = resolved.state

    async def crash(self, which, request):
        """Kill the process, perhaps during the write of an intent, which the model then looks for; another one takes over."""
        asked = intent = None
        if request is not None:
            intent, earlier = self.intent(*request), self.repeated(which, request)
            asked = asyncio.ensure_future(self.journals[which].intend(intent))
            await asyncio.sleep(0)
        journal = self.journals[which]
        journal._task.cancel()
        await asyncio.gather(journal._task, return_exceptions=True)
        dead = self.databases[which].owner
        await self.databases[which].close()
        if asked is not None:
            asked.cancel()
            (came,) = await asyncio.gather(asked, return_exceptions=True)
            assert isinstance(came, None | JournalUnavailable | RequestRepeated) or asked.cancelled()
        await self.start(which)
        await until_gone(self.databases[which], dead)
        if intent is not None:
            found = await Books(self.databases[which]).purchase(intent.quote.job_id)
            if found is not None:
                assert earlier == []
                self.bought.append(Bought(intent.quote.job_id, dead, *request, self.now))
        while await sweep(self.databases[which], self.now):
            pass
        alive = {database.owner for database in self.databases}
        for one in self.bought:
            if one.owner not in alive:
                one.state = SWEPT.get(one.state, one.state)

    async def wait(self, seconds):
        self.now += timedelta(seconds=seconds)

    async def forget_old(self):
        await forget_repeat_keys(self.databases[0], self.now)

    async def check(self):
        """Compare the journal with the model: states, and the keys in use."""
        known = {one.job_id: one for one in self.bought}
        rows = await self.databases[0].read(
            lambda connection: connection.execute(
                select(purchases.c.job_id, purchases.c.state, purchases.c.repeat_key, purchases.c.repeat_until).where(
                    purchases.c.key_id == f"key of run {self._run}"
                )
            ).all()
        )
        assert {row.job_id: row.state for row in rows} == {job_id: one.state for job_id, one in known.items()}
        for row in rows:
            one = known[row.job_id]
            if one.state is State.NOT_PAID:
                assert row.repeat_key is None and row.repeat_until is None
            elif one.kind == "key" and self.now < one.at + KEY_FOR:
                assert row.repeat_key is not None
        keys = [row.repeat_key for row in rows if row.repeat_key is not None]
        assert len(keys) == len(set(keys))


_runs = itertools.count()


@settings(
    max_examples=examples(0.3),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(steps, min_size=8, max_size=30))
async def test_repeats_are_refused_as_a_model_says_after_any_sequence(where, sequence):
    two = TwoProcesses(where, next(_runs))
    for which in range(2):
        await two.start(which)
    try:
        for name, *arguments in sequence:
            await getattr(two, name)(*arguments)
        await two.check()
    finally:
        await two.stop()
