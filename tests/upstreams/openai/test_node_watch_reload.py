"""Nodes that are added, changed and removed while the gateway runs, with tasks under way on them."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from lcp_gateway.adapters.model_list import ListedModel
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.order import Task, TaskKind
from lcp_gateway.purchase.ports import Result
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.upstreams.openai.adapter import OpenAIHttpUpstream
from lcp_gateway.upstreams.openai.connections import VirtualNode
from lcp_gateway.upstreams.openai.node_watch import NodeWatch
from lcp_gateway.upstreams.openai.price import NodePrice
from tests.support.http_node import Behaviour, HttpNodeThread, http_nodes

CHAT = TaskKind.CHAT_COMPLETIONS
BODY = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"one two three four five six"}]}'
TASK = Task(CHAT, "m", BODY, stream=True)
DOWN = UpstreamError("UNAVAILABLE", "no connection to the node can be made", retryable=True)


# -- the watched nodes ------------------------------------------------------------------------------


class Lists:
    """Stands in for the upstream: each node's list of models, or the error of the request for it."""

    def __init__(self, **answers):
        self.answers = answers
        self.asked = []
        self.hold = None

    async def list_models(self, name, timeout_s):
        self.asked.append(name)
        if self.hold is not None:
            await self.hold.wait()
        answer = self.answers[name]
        if isinstance(answer, Exception):
            raise answer
        return tuple(map(ListedModel, answer))


class Watched:
    """A node watch, and what it reported."""

    def __init__(self, lists, *nodes):
        self.changes, self.gone = [], []
        self.watch = NodeWatch(
            lists,
            nodes,
            refresh_s=60,
            timeout_s=1,
            describe=lambda _model, node: node.kinds & {CHAT},
            on_change=lambda name, up: self.changes.append((name, up)),
            on_gone=self.gone.append,
        )

    def use(self, *nodes, **changes):
        options = {"refresh_s": 60, "timeout_s": 1, "describe": lambda _m, n: n.kinds & {CHAT}}
        self.watch.use(nodes, **{**options, **changes})

    @property
    def offers(self):
        return {p.node_name: p.models.get(CHAT, ()) for p in self.watch.providers}


def node(name, **options):
    return VirtualNode(name, f"http://{name}.test:1/v1", **options)


@asynccontextmanager
async def running(watched):
    task = asyncio.create_task(watched.watch.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(is_so):
    async with asyncio.timeout(60):
        while not is_so():
            await asyncio.sleep(0.005)


async def test_a_node_that_is_as_before_is_not_asked_again_and_stays_the_same_object():
    lists = Lists(a=["m"], b=["n"])
    watched = Watched(lists, node("a"))
    async with running(watched):
        await until(lambda: watched.offers)
        (before,) = watched.watch.providers
        watched.use(node("a"), node("b"))
        await until(lambda: len(watched.offers) == 2)
    assert watched.watch.providers[0] == before
    assert lists.asked == ["a", "b"]
    assert (watched.changes, watched.gone) == ([("a", True), ("b", True)], [])


async def test_a_node_that_is_taken_out_leaves_at_once_and_is_asked_no_more():
    lists = Lists(a=["m"], b=["n"])
    watched = Watched(lists, node("a"), node("b"))
    async with running(watched):
        await until(lambda: len(watched.offers) == 2)
        watched.use(node("b"), refresh_s=0.01)
        assert watched.offers == {"b": ("n",)}
        asked = lists.asked.count("a")
        await until(lambda: lists.asked.count("b") > 3)
    assert lists.asked.count("a") == asked
    assert watched.gone == ["a"]
    assert set(watched.watch.states) == {"b"}


async def test_a_node_with_a_changed_configuration_counts_as_up_until_it_is_probed():
    lists = Lists(a=["m"])
    watched = Watched(lists, node("a"))
    async with running(watched):
        await until(lambda: watched.offers)
        lists.hold = asyncio.Event()
        dearer = NodePrice(per_request_msat=9)
        watched.use(node("a", price=dearer))
        (provider,) = watched.watch.providers
        assert (provider.list_price_msat, provider.models) == (9, {CHAT: ("m",)})
        lists.answers["a"] = DOWN
        lists.hold.set()
        await until(lambda: not watched.offers)
    assert watched.changes == [("a", True), ("a", False)]


async def test_what_a_node_said_before_it_was_taken_out_changes_nothing():
    lists = Lists(a=["m"])
    lists.hold = asyncio.Event()
    watched = Watched(lists, node("a"))
    async with running(watched):
        await until(lambda: lists.asked)
        probing = asyncio.create_task(watched.watch.refresh())
        await asyncio.sleep(0)
        watched.use()
        lists.hold.set()
        await probing
    assert (watched.offers, watched.changes) == ({}, [])


async def test_other_kinds_of_a_model_hold_at_once():
    lists = Lists(a=["m"])
    watched = Watched(lists, node("a"))
    async with running(watched):
        await until(lambda: watched.offers)
        watched.use(node("a"), describe=lambda _model, _node: frozenset({TaskKind.EMBEDDINGS}))
        (provider,) = watched.watch.providers
    assert provider.models == {TaskKind.EMBEDDINGS: ("m",)}


async def test_nodes_can_be_exchanged_again_and_again_in_any_order():
    lists = Lists(a=["m"], b=DOWN, c=["n"])
    watched = Watched(lists)
    async with running(watched):
        for names in ("a", "ab", "b", "", "cba", "c", "ac") * 3:
            watched.use(*map(node, names))
            await asyncio.sleep(0)
        await until(lambda: watched.offers == {"a": ("m",), "c": ("n",)})
    assert set(watched.watch.states) == {"a", "c"}


# -- tasks, with real servers ------------------------------------------------------------


@asynccontextmanager
async def upstream_of(*nodes):
    upstream = OpenAIHttpUpstream(nodes)
    try:
        yield upstream
    finally:
        await upstream.close()


def served_by(server, **options):
    return VirtualNode(server.server.name, server.base_url, **options)


async def read(events):
    """Read a stream to its end; return its bytes."""
    chunks = [event async for event in events if isinstance(event, bytes)]
    return b"".join(chunks)


@pytest.fixture
def slow():
    server = HttpNodeThread("alpha", ("m",), behaviour=Behaviour(token_delay_s=0.05))
    with http_nodes(server):
        yield server


async def begun(upstream, server):
    """Start a stream; return it after its first bytes."""
    name = f"node:{server.server.name}"
    quote = await upstream.request_quote(TASK, name, 1)
    events = upstream.execute_stream(quote, TASK, 60)
    await anext(events)
    return events, await anext(events)


async def test_a_stream_of_a_node_that_is_taken_out_ends_as_it_would_have(slow):
    async with upstream_of(served_by(slow)) as upstream:
        link = upstream._connections["node:alpha"]
        events, first = await begun(upstream, slow)
        upstream.use(())
        rest = await read(events)
        assert (first + rest).endswith(b"data: [DONE]\n\n")
        await until(lambda: link._sessions[False].closed)
        with pytest.raises(UpstreamError, match="no node of that name") as caught:
            await upstream.request_quote(TASK, "node:alpha", 1)
        assert caught.value.evidence is Verdict.NONE
        await until(lambda: not upstream._leaving)


async def test_a_node_that_is_as_before_keeps_its_connections(slow):
    other = VirtualNode("beta", "http://beta.test:1/v1")
    async with upstream_of(served_by(slow)) as upstream:
        link = upstream._connections["node:alpha"]
        upstream.use((other, served_by(slow)))
        assert upstream._connections["node:alpha"] is link
        assert list(upstream._connections) == ["node:beta", "node:alpha"]


async def test_a_task_ends_at_the_price_that_the_node_had_when_it_was_handed_over(slow):
    cheap, dear = (NodePrice(per_request_msat=amount) for amount in (1_000, 9_000))
    async with upstream_of(served_by(slow, price=cheap)) as upstream:
        quote = await upstream.request_quote(TASK, "node:alpha", 1)
        events = upstream.execute_stream(quote, TASK, 60)
        await anext(events)
        upstream.use((served_by(slow, price=dear),))
        later = await upstream.request_quote(TASK, "node:alpha", 1)
        *_, result = [event async for event in events]
    assert isinstance(result, Result)
    assert (quote.price_msat, result.charged_msat, later.price_msat) == (1_000, 1_000, 9_000)


async def test_another_key_is_sent_with_the_next_task(slow):
    async with upstream_of(served_by(slow, api_key="old-key")) as upstream:
        events, _ = await begun(upstream, slow)
        upstream.use((served_by(slow, api_key="new-key"),))
        await read(events)
        events, _ = await begun(upstream, slow)
        await read(events)
    sent = [seen.headers["Authorization"] for seen in slow.calls()]
    assert sent == ["Bearer old-key", "Bearer new-key"]


async def test_the_end_does_not_wait_for_streams_of_nodes_that_were_taken_out(slow):
    slow.behave(token_delay_s=60)
    async with asyncio.timeout(45):
        async with upstream_of(served_by(slow)) as upstream:
            events, _ = await begun(upstream, slow)
            link = upstream._connections["node:alpha"]
            upstream.use(())
        assert link._sessions[False].closed
        await events.aclose()
