"""The database against a plain dictionary: whatever is called in whatever order, and however often it is opened again."""

import asyncio
import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lcp_gateway.node.lcp.messages import Protocol
from lcp_gateway.node.memory.store import MemoryStore
from lcp_gateway.node.storage.history import open_history
from lcp_gateway.node.storage.records import end_without_text, read_sent
from lcp_gateway.node.storage.store import SqliteStore
from tests.support.node_records import PREIMAGE, end, failure, manifest, number32, peer, piece, purchase, quote, sale

NUMBERS = st.integers(0, 3)
PROTOCOLS = st.sampled_from(Protocol)
MESSAGES = st.lists(
    st.one_of(
        st.builds(piece, NUMBERS, st.integers(0, 3), data=st.binary(max_size=40)),
        st.builds(end, NUMBERS),
        st.builds(failure, NUMBERS, st.text(max_size=10)),
    ),
    max_size=3,
).map(tuple)


class StoreMachine(RuleBasedStateMachine):
    at_rest = "encrypted"

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "node.db"
        self.runner = asyncio.Runner()
        self.model = MemoryStore()
        self.lines, self.open_sales = [], set()
        self.open()

    def open(self):
        self.store = self.runner.run(SqliteStore.open(self.path, at_rest=self.at_rest, clock=lambda: 1_000))

    def call(self, method, *arguments, **named):
        for store in (self.store, self.model):
            self.runner.run(getattr(store, method)(*arguments, **named))

    @rule(number=NUMBERS, protocol=PROTOCOLS, kept=st.integers(0, 5) | st.none())
    def keep_manifest(self, number, protocol, kept):
        self.call("keep_manifest", peer(number), protocol, None if kept is None else manifest(kept, protocol))

    @rule(number=NUMBERS, protocol=PROTOCOLS, params=st.none() | st.binary(max_size=20))
    def keep_purchase_with_params_of_the_client(self, number, protocol, params):
        if self.at_rest == "encrypted":
            self.call("keep_purchase", purchase(number, protocol=protocol, params=params))

    @rule(number=NUMBERS, protocol=PROTOCOLS)
    def keep_purchase(self, number, protocol):
        self.call("keep_purchase", purchase(number, protocol=protocol))

    @rule(number=NUMBERS, paid=st.booleans(), preimage=st.none() | st.just(PREIMAGE))
    def end_purchase(self, number, paid, preimage):
        if quote(number).job_id in self.model._purchases:
            self.lines.append(("purchase", peer(number), "over", paid, preimage))
        self.call("end_purchase", quote(number).job_id, outcome="over", paid=paid, ended_at=1_000, preimage=preimage)

    @rule(
        number=NUMBERS,
        protocol=PROTOCOLS,
        body=st.binary(min_size=1, max_size=50),
        sent=MESSAGES,
        preimage=st.none() | st.just(PREIMAGE),
    )
    def keep_sale(self, number, protocol, body, sent, preimage):
        self.open_sales.add((peer(number), number32("job", number)))
        self.call("keep_sale", sale(number, protocol=protocol, body=body, sent=sent, hold_preimage=preimage))

    @rule(number=NUMBERS, of=NUMBERS, messages=MESSAGES)
    def keep_sent(self, number, of, messages):
        self.call("keep_sent", peer(number), number32("job", of), messages)

    @rule(number=NUMBERS, paid=st.booleans(), line=st.booleans())
    def end_sale(self, number, paid, line):
        key = (peer(number), number32("job", number))
        if key in self.model._sales:
            self.open_sales.discard(key)
            if line and key not in self.model._lined:
                self.lines.append(("sale", peer(number), "done", paid, None))
        ended = {"outcome": "done", "price_msat": 1, "paid": paid, "line": line, "model": "model-a", "ended_at": 1_000}
        self.call("end_sale", *key, **ended)

    @rule(number=NUMBERS)
    def forget_sale(self, number):
        key = (peer(number), number32("job", number))
        self.open_sales.discard(key)
        self.call("forget_sale", *key)

    @rule(node=st.sampled_from([peer(8), peer(9)]), index=st.integers(0, 2**50))
    def keep_settle_index(self, node, index):
        self.call("keep_settle_index", node, index)

    @rule()
    def open_again(self):
        self.runner.run(self.store.close())
        self.open()

    @invariant()
    def they_hold_the_same(self):
        run = self.runner.run
        assert run(self.store.manifests()) == run(self.model.manifests())
        for node in (peer(8), peer(9)):
            assert run(self.store.settle_index(node)) == run(self.model.settle_index(node))
        assert by_id(run(self.store.purchases())) == by_id(run(self.model.purchases()))
        assert by_id(run(self.store.sales())) == by_id(map(self.expected, run(self.model.sales())))

    def expected(self, kept):
        return kept

    @invariant()
    def the_lines_of_what_ended_are_there_in_their_order(self):
        with open_history(self.path) as history:
            found = history.lines()
            opened = history.open_jobs()
        assert [(one.kind, one.peer_id, one.outcome, one.paid, one.preimage) for one in reversed(found)] == self.lines
        assert {(one.kind, one.peer_id) for one in opened} == {
            *(("sale", peer_id) for peer_id, _ in self.open_sales),
            *(("purchase", one.peer_id) for one in self.model._purchases.values()),
        }

    def teardown(self):
        self.runner.run(self.store.close())
        self.runner.close()
        self.folder.cleanup()


class MemoryAloneMachine(StoreMachine):
    at_rest = "memory"

    def expected(self, kept):
        last = end_without_text(kept.sent)
        sent = () if last is None else tuple(read_sent(last))
        return replace(kept, kept=replace(kept.kept, body=b""), sent=sent, hold_preimage=None)


def by_id(kept):
    return sorted(kept, key=repr)


TestEncrypted = StoreMachine.TestCase
TestMemoryAlone = MemoryAloneMachine.TestCase
TestEncrypted.settings = TestMemoryAlone.settings = settings(stateful_step_count=15, deadline=None)
