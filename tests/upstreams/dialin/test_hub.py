"""Nodes in memory: what they offer, what is bought from them, and when they are disconnected."""

import asyncio
import contextlib
import json

import pytest

from lcp_gateway.constants import NODE_PREFIX
from lcp_gateway.node_protocol.frames import FrameKind
from lcp_gateway.node_protocol.messages import Head
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.order import Task, TaskKind
from lcp_gateway.purchase.ports import Result, StreamBegin
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.upstreams.dialin.adapter import DialinUpstream
from lcp_gateway.upstreams.dialin.connection import ConnectionRules
from lcp_gateway.upstreams.dialin.grants import NodeTerms, OperatorNode, OperatorTokens, token_digest
from lcp_gateway.upstreams.dialin.hub import HubRules, NodeHub
from lcp_gateway.upstreams.dialin.probe import ProbeRules
from tests.support.dialin_node import (
    EVENTS,
    MemorySocket,
    ScriptedNode,
    chat_document,
    chat_events,
    hello,
    honest,
    model,
)
from tests.support.scripted_peers import settle

TOKEN, NAME = "tok", "gpu"
ID = NODE_PREFIX + NAME
WINDOW = 1_000


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class OfAccount:
    """The grant of an account's nodes, which holds while its key can be checked."""

    def __init__(self, account_id):
        self.account_id = account_id
        self.is_known = True

    async def terms(self, name):
        return NodeTerms(f"{name}.{self.account_id}", account_id=self.account_id)

    def holds(self):
        return self.is_known

    def is_revoked(self):
        return False


class World:
    """A hub, its upstream, and the nodes of a test."""

    def __init__(self, **rules):
        self.clock = Clock()
        self.tasks: set[asyncio.Task] = set()
        self.changes = []
        self.refuted = []
        rules = {"connection": ConnectionRules(heartbeat_s=5.0, window_bytes=WINDOW, max_result_bytes=50_000), **rules}
        self.hub = NodeHub(
            HubRules(**rules),
            start=self.start,
            on_change=lambda terms, up, reason: self.changes.append((terms.node_id, up, reason)),
            clock=self.clock,
        )
        self.upstream = DialinUpstream(self.hub, max_result_bytes=50_000, on_refuted=self.refuted.append)
        self.tokens = OperatorTokens([OperatorNode(token_digest(TOKEN), NodeTerms(NAME))])

    def start(self, work):
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def joined(self, behave=honest, said=None, grant=None, **more) -> ScriptedNode:
        socket = MemorySocket()
        node = ScriptedNode(socket, behave, said or hello(), **more)
        self.start(self.hub.serve(socket, grant or self.tokens.find(TOKEN)))
        self.start(node.run())
        await node.until(lambda: node.offered or node.refused or node.goodbye or socket.is_cut)
        return node

    async def tick(self):
        """Let some rounds of the hub's own task pass, and what they begin."""
        running = asyncio.ensure_future(self.hub.run())
        await settle()
        running.cancel()

    async def quote(self, name="m", stream=False, **more):
        task = Task(TaskKind.CHAT_COMPLETIONS, name, json.dumps({"model": name}).encode(), stream)
        return await self.upstream.request_quote(task, ID, 5.0), task

    async def buy(self, timeout_s=60.0, **more):
        return await self.upstream.execute(*await self.quote(**more), timeout_s)

    async def stream(self, timeout_s=60.0):
        quote, task = await self.quote(stream=True)
        return [event async for event in self.upstream.execute_stream(quote, task, timeout_s)]


@pytest.fixture
async def world(monkeypatch):
    # A round of its own task a turn of the event loop: no test waits for the clock.
    monkeypatch.setattr("lcp_gateway.upstreams.dialin.hub.TICK_S", 0.0)
    made = []

    def make(**rules):
        made.append(World(**rules))
        return made[-1]

    yield make
    for one in made:
        await one.hub.close()
        for task in tuple(one.tasks):
            task.cancel()
        await asyncio.gather(*one.tasks, return_exceptions=True)


async def failed(work) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        await work
    return caught.value


async def test_a_whole_result_and_a_stream_come_byte_for_byte_and_are_charged(world):
    w = world()
    await w.joined()
    result = await w.buy()
    assert result.body == chat_document("m", "one two three") and result.charged_msat == 1_000
    first, *chunks, last = await w.stream()
    assert isinstance(first, StreamBegin) and first.content_type == EVENTS
    assert b"".join(chunks) == b"".join(chat_events("m", ["one ", "two ", "three"]))
    assert isinstance(last, Result) and last.length == len(b"".join(chunks))


async def test_a_node_is_a_provider_with_its_models_prices_and_limits(world):
    w = world()
    await w.joined(
        said=hello(
            model("m"), model("dear", price_msat=9_000, context_length=8_192), model("e", "embeddings"), concurrent=7
        )
    )
    (provider,) = w.hub.providers
    assert provider.peer_id == ID and provider.owned_by == NAME and provider.max_inflight_jobs == 7
    assert provider.models[TaskKind.CHAT_COMPLETIONS] == ("m", "dear")
    assert provider.models[TaskKind.EMBEDDINGS] == ("e",)
    assert (provider.listed_msat("m"), provider.listed_msat("dear")) == (1_000, 9_000)
    assert provider.facts["dear"].context_length == 8_192
    assert (await w.quote("dear"))[0].price_msat == 9_000


async def test_the_operators_terms_allow_models_and_set_the_price(world):
    from lcp_gateway.upstreams.openai.price import NodePrice

    w = world()
    terms = NodeTerms(NAME, models=frozenset({"m"}), price=NodePrice(per_request_msat=5), owned_by="me", concurrent=1)
    w.tokens.use([OperatorNode(token_digest(TOKEN), terms)])
    node = await w.joined(said=hello(model("m"), model("other")))
    assert node.offered == ("m",) and "does not allow" in node.refused["other"]
    (provider,) = w.hub.providers
    assert provider.owned_by == "me" and provider.max_inflight_jobs == 1
    assert (await w.quote())[0].price_msat == 5
    assert (await failed(w.quote("other"))).evidence is Verdict.NONE


async def test_a_reader_that_stops_stalls_no_other_and_bounds_what_is_held(world):
    w = world()

    async def long(node, request_id, request, body):
        await node.head(request_id, EVENTS)
        data = b": filler\n" * 2_000 if request.stream else chat_document("m", "x")
        await node.body(request_id, data)
        await node.finish(request_id, data)

    node = await w.joined(long)
    quote, task = await w.quote(stream=True)
    slow = w.upstream.execute_stream(quote, task, 60.0)
    await anext(slow)
    for _ in range(20):
        await w.buy()
    # The node may send no more than the window to the reader that stopped.
    assert node.side.credit_bytes(1) == 0
    taken = 0
    async for event in slow:
        if isinstance(event, bytes):
            taken += len(event)
    assert taken == 18_000


async def before_head(node, request_id, request, body):
    await node.fail(request_id, 503, "overloaded", "no room")


async def after_head(node, request_id, request, body):
    await node.head(request_id, EVENTS)
    await node.fail(request_id, 502, "broken_off", "gone")


async def never(node, request_id, request, body):
    await node.head(request_id, EVENTS)


async def cut_after_head(node, request_id, request, body):
    await node.head(request_id, EVENTS)
    node.end.abort()


async def unreadable(node, request_id, request, body):
    """Sell noise: what cannot be read cannot be told from an answer."""
    await node.end.send_bytes(node.side.head(request_id, Head(EVENTS, "br")))
    await node.body(request_id, b"x" * 900)
    await node.finish(request_id, b"x" * 900, input_tokens=1, output_tokens=1)


async def too_long(node, request_id, request, body):
    await node.head(request_id)
    await node.body(request_id, b"x" * 60_000)


@pytest.mark.parametrize("behave", [before_head, after_head, never, cut_after_head, unreadable])
@pytest.mark.parametrize("stream", [True, False])
async def test_what_fails_before_the_first_byte_costs_nothing_and_may_be_bought_elsewhere(world, behave, stream):
    w = world()
    await w.joined(behave)
    error = await failed(w.stream(timeout_s=0.2) if stream else w.buy(timeout_s=0.2))
    assert error.evidence is Verdict.NONE and error.retryable


async def test_a_result_in_one_piece_that_is_cut_or_too_long_costs_nothing_either(world):
    async def cut(node, request_id, request, body):
        await node.head(request_id)
        await node.body(request_id, b'{"half')
        await node.fail(request_id, 502, "broken_off", "gone")

    w = world()
    await w.joined(cut)
    assert (await failed(w.buy())).evidence is Verdict.NONE
    w = world()
    node = await w.joined(too_long)
    assert "longer than 50000 bytes" in (await failed(w.buy())).message
    await node.until(lambda: node.cancelled)


async def test_the_stated_hash_goes_to_the_purchase_which_compares_it(world):
    async def wrong(node, request_id, request, body):
        await node.head(request_id)
        await node.body(request_id, b"{}")
        await node.finish(request_id, b"something else")

    w = world()
    await w.joined(wrong)
    result = await w.buy()
    assert (result.body, result.length) == (b"{}", len(b"something else"))


@pytest.mark.parametrize(
    ("usage", "charged_msat"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 20}, 30),
        # Ten thousand times what it is: the estimate is charged, not the word of the node.
        ({"prompt_tokens": 100_000, "completion_tokens": 200_000}, 79),
        ({"prompt_tokens": 10, "completion_tokens": 200_000}, 85),
    ],
)
async def test_stated_usage_is_held_against_the_bytes(world, usage, charged_msat):
    from lcp_gateway.upstreams.openai.price import NodePrice

    async def answers(node, request_id, request, body):
        data = chat_document("m", "one", usage).ljust(300)
        await node.head(request_id)
        await node.body(request_id, data)
        await node.finish(request_id, data)

    w = world()
    price = NodePrice(per_1k_input_msat=1_000, per_1k_output_msat=1_000)
    w.tokens.use([OperatorNode(token_digest(TOKEN), NodeTerms(NAME, price=price))])
    await w.joined(answers)
    result = await w.buy()
    # 13 bytes of a request and 300 of a result are estimated at 4 and 75 tokens.
    assert result.charged_msat == charged_msat
    assert w.refuted == ([] if charged_msat == 30 else [ID])


async def test_more_bytes_than_the_credit_end_the_connection(world):
    async def flood(node, request_id, request, body):
        await node.head(request_id, EVENTS)
        for _ in range(3):
            await node.raw(FrameKind.BODY, request_id, b"x" * WINDOW)

    w = world()
    node = await w.joined(flood)
    quote, task = await w.quote(stream=True)
    events = w.upstream.execute_stream(quote, task, 60.0)
    with contextlib.suppress(UpstreamError):
        await anext(events)
        await node.until(lambda: node.goodbye)
    await events.aclose()
    await node.until(lambda: w.hub.connection(ID) is None)
    assert node.goodbye.reason == "no_credit" and w.hub.providers == ()
    assert w.changes[-1] == (NAME, False, "no_credit")


async def test_a_reader_that_leaves_takes_its_request_back(world):
    w = world()

    async def drip(node, request_id, request, body):
        await node.head(request_id, EVENTS)
        while True:
            await node.body(request_id, b": drip\n")
            await asyncio.sleep(0.01)

    node = await w.joined(drip)
    quote, task = await w.quote(stream=True)
    events = w.upstream.execute_stream(quote, task, 60.0)
    await anext(events)
    await events.aclose()
    await node.until(lambda: node.cancelled == {1})
    connection = w.hub.connection(ID)
    await node.until(lambda: connection.running == 0)


async def test_a_node_that_does_not_end_cancelled_requests_is_disconnected(world):
    w = world()
    node = await w.joined(never, answers_cancel=False)
    await failed(w.buy(timeout_s=0.05))
    await node.until(lambda: node.cancelled)
    assert w.hub.connection(ID).running == 1
    w.clock.now = 31.0
    await node.raw(FrameKind.PING, 0)
    await asyncio.sleep(0)
    await w.tick()
    assert node.goodbye.reason == "cancel_ignored" and w.hub.connection(ID) is None


async def test_requests_wait_for_room_and_go_elsewhere_once_as_many_wait(world):
    w = world()
    going = asyncio.Event()

    async def slowly(node, request_id, request, body):
        await going.wait()
        await honest(node, request_id, request, body)

    node = await w.joined(slowly, hello(concurrent=2))
    buying = [asyncio.ensure_future(w.buy()) for _ in range(4)]
    await node.until(lambda: len(node.requests) == 2)
    error = await failed(w.quote())
    assert error.status == "RESOURCE_EXHAUSTED" and error.evidence is Verdict.NONE
    going.set()
    assert len(await asyncio.gather(*buying)) == 4
    assert len(node.requests) == 4


async def test_the_newest_connection_of_a_node_is_the_one(world):
    w = world()
    old = await w.joined(never)
    buying = asyncio.ensure_future(w.buy())
    await old.until(lambda: old.requests)
    await w.joined()
    assert old.goodbye.reason == "replaced" and old.goodbye.reconnect_after_s < 0
    assert (await failed(buying)).evidence is Verdict.NONE
    assert (await w.buy()).charged_msat == 1_000


async def test_a_worker_that_a_node_is_connected_to_already_sends_it_to_the_others(world):
    from dataclasses import replace

    w = world(connection=ConnectionRules(worker=1, workers=2))
    node = await w.joined()
    assert (node.welcome.worker, node.welcome.workers) == (1, 2)
    again = await w.joined(said=replace(hello(), held=(1,)))
    assert again.goodbye.reason == "already_here" and again.goodbye.reconnect_after_s == 0
    assert (await w.buy()).charged_msat == 1_000
    # A connection that the node itself has lost is not in its list, and is replaced.
    await w.joined(said=replace(hello(), held=(0,)))
    assert node.goodbye.reason == "replaced"


async def test_a_silent_node_is_dead_after_three_heartbeats(world):
    async def says_nothing(node, request_id, request, body):
        pass

    w = world()
    node = await w.joined(says_nothing)
    buying = asyncio.ensure_future(w.buy())
    await node.until(lambda: node.requests)
    w.clock.now = 15.0
    await w.tick()
    assert (await failed(buying)).evidence is Verdict.NONE
    await node.until(lambda: w.hub.connection(ID) is None)
    assert w.changes[-1] == (NAME, False, "dead")
    assert w.hub.states[NAME].problem == "dead" and not w.hub.states[NAME].up


async def test_a_revoked_token_ends_the_connection_at_once(world):
    w = world()
    node = await w.joined()
    w.tokens.use([])
    assert (await failed(w.quote())).evidence is Verdict.NONE
    await w.tick()
    assert node.goodbye.reason == "revoked" and w.hub.providers == ()


async def test_a_name_of_a_virtual_node_is_refused(world):
    w = world(taken_names=frozenset({NAME}))
    assert (await w.joined()).goodbye.reason == "name_taken"


async def test_one_account_gets_half_of_the_places_and_the_operators_nodes_need_none(world):
    w = world(max_nodes=3)
    one, other, third = OfAccount("one"), OfAccount("other"), OfAccount("third")

    async def offered(grant, name):
        return (await w.joined(grant=grant, said=hello(name=name))).offered

    assert await offered(one, "a") and await offered(one, "b")
    assert not w.hub.has_place(one) and w.hub.has_place(other)
    goodbye = (await w.joined(grant=one, said=hello(name="c"))).goodbye
    # It may dial again later.
    assert (goodbye.reason, goodbye.reconnect_after_s) == ("too_many_nodes", 0)
    # A node that is here may come back: its old connection may be half open.
    assert await offered(one, "b")
    assert await offered(other, "a")
    assert not w.hub.has_place(third)
    assert (await w.joined(grant=third)).goodbye.reason == "too_many_nodes"
    assert w.hub.has_place(w.tokens.find(TOKEN)) and (await w.joined()).offered
    w.hub.drain()
    assert not w.hub.has_place(w.tokens.find(TOKEN))


async def test_models_come_and_go_while_a_node_is_connected(world):
    w = world()
    node = await w.joined()
    await node.end.send_bytes(node.side.models((model("m"), model("new"))))
    await node.until(lambda: node.offered == ("m", "new"))
    assert w.hub.providers[0].offers(TaskKind.CHAT_COMPLETIONS, "new")
    await node.end.send_bytes(node.side.models(()))
    await node.until(lambda: node.offered == ())
    assert w.hub.providers == () and w.hub.states[NAME].up


async def test_what_a_node_that_does_not_read_is_told_does_not_pile_up(world):
    w = world()
    node = await w.joined()
    node.end.is_behind = True
    for number in range(50):
        await node.end.send_bytes(node.side.models((model("m"), model(f"m{number}"))))
    await node.until(lambda: w.hub.offers(ID, TaskKind.CHAT_COMPLETIONS, "m49"))
    assert node.end.frames.empty() and node.offered == ("m",)
    node.end.is_behind = False
    await w.tick()
    await node.until(lambda: node.offered == ("m", "m49"))


async def test_a_model_is_offered_once_it_has_passed_its_probe_and_no_longer_when_it_fails(world):
    w = world(probe=ProbeRules(is_on=True, answer="three", interval_s=100.0))
    says = {"m": "ONE TWO THREE", "liar": "42"}

    async def answers(node, request_id, request, body):
        data = chat_document(request.model, says[request.model])
        await node.head(request_id)
        await node.body(request_id, data)
        await node.finish(request_id, data)

    node = await w.joined(answers, hello(model("m"), model("liar")))
    await node.until(lambda: node.offered == ("m",) and "known one" in node.refused.get("liar", ""))
    says["m"] = "no"
    w.clock.now = 14.0
    await node.raw(FrameKind.PING, 0)
    await asyncio.sleep(0)
    await w.tick()
    assert node.offered == ("m",)
    connection = w.hub.connection(ID)
    connection.probed_at = -100.0
    await w.tick()
    await node.until(lambda: node.offered == ())


async def test_a_node_that_is_busy_keeps_its_models_and_is_probed_once_it_has_room(world, monkeypatch):
    w = world(probe=ProbeRules(is_on=True, answer="three", interval_s=100.0, timeout_s=60.0))
    going = asyncio.Event()
    going.set()

    async def slowly(node, request_id, request, body):
        await going.wait()
        await honest(node, request_id, request, body)

    node = await w.joined(slowly, hello(concurrent=1))
    await node.until(lambda: node.offered == ("m",))
    going.clear()
    buying = asyncio.ensure_future(w.buy(timeout_s=120.0))
    await node.until(lambda: len(node.requests) == 2)
    connection = w.hub.connection(ID)
    connection.probed_at = -100.0
    await w.tick()
    # More time passes on the loop's clock than the probe may take.
    loop = asyncio.get_running_loop()
    real_time = loop.time
    monkeypatch.setattr(loop, "time", lambda: real_time() + 61.0)
    await settle()
    assert connection.is_probing and node.offered == ("m",)
    going.set()
    await buying
    await node.until(lambda: not connection.is_probing)
    assert len(node.requests) == 3 and node.offered == ("m",)


async def test_models_whose_probe_met_a_key_that_could_not_be_checked_are_probed_again(world):
    w = world(probe=ProbeRules(is_on=True, answer="three", interval_s=0.0))
    grant = OfAccount("one")

    async def stale_at_first(node, request_id, request, body):
        grant.is_known = request_id > 1
        await honest(node, request_id, request, body)

    node = await w.joined(stale_at_first, hello(model("m"), model("n")), grant=grant)
    await node.until(lambda: node.requests and not w.hub.connection("gpu.one").is_probing)
    grant.is_known = True
    await w.tick()
    await node.until(lambda: node.offered == ("m", "n"))


async def test_a_gateway_that_drains_lets_results_end_and_sends_nothing_new(world):
    w = world()
    going = asyncio.Event()

    async def slowly(node, request_id, request, body):
        await going.wait()
        await honest(node, request_id, request, body)

    node = await w.joined(slowly)
    buying = asyncio.ensure_future(w.buy())
    await node.until(lambda: node.requests)
    w.hub.drain()
    await node.until(lambda: node.goodbye)
    assert (await failed(w.quote())).evidence is Verdict.NONE
    going.set()
    assert (await buying).charged_msat == 1_000
