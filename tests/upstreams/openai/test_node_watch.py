import asyncio
import json
import subprocess
import sys
import time
import urllib.request
from http.client import IncompleteRead

import pytest

from lcp_gateway.adapters.model_list import ListedModel
from lcp_gateway.app.background_tasks import BackgroundTask, BackgroundTasks, Backoff
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.order import Task, TaskKind
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.routing.catalog import Catalog, ModelFacts
from lcp_gateway.telemetry.logs import get_logger
from lcp_gateway.upstreams.openai.adapter import NoModelList, OpenAIHttpUpstream
from lcp_gateway.upstreams.openai.connections import VirtualNode
from lcp_gateway.upstreams.openai.node_watch import NodeWatch
from lcp_gateway.upstreams.openai.price import NodePrice
from tests.support.http_node import HttpNodeThread, http_nodes

CHAT, EMBEDDINGS = TaskKind.CHAT_COMPLETIONS, TaskKind.EMBEDDINGS


def describe(model, node):
    return frozenset({EMBEDDINGS}) if "embed" in model else node.kinds - {EMBEDDINGS}


class Lists:
    """Stands in for the upstream: each node's list of models, or the error of the request for it."""

    def __init__(self, **answers):
        self.answers = answers
        self.asked = []
        self.times = []
        self.hold = None

    async def list_models(self, name, timeout_s):
        self.asked.append(name)
        self.times.append(time.monotonic())
        if self.hold is not None:
            await self.hold.wait()
        answer = self.answers[name]
        if isinstance(answer, Exception):
            raise answer
        return tuple(ListedModel(m) if isinstance(m, str) else m for m in answer)


DOWN = UpstreamError("UNAVAILABLE", "no connection to the node can be made", retryable=True)


def node(name="a", **options):
    return VirtualNode(name, f"http://user:secret@{name}.test:1/v1?key=1", **options)


def watch_of(lists, *nodes, **options):
    changes = []
    options = {"refresh_s": 60, "timeout_s": 60, "describe": describe, **options}
    watch = NodeWatch(lists, nodes, on_change=lambda name, up: changes.append((name, up)), **options)
    return watch, changes


async def until(is_so, timeout_s=60):
    async with asyncio.timeout(timeout_s):
        while not is_so():
            await asyncio.sleep(0.005)


async def ended(task):
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_before_the_first_probe_no_node_is_up():
    watch, changes = watch_of(Lists(), node())
    assert watch.providers == ()
    assert not watch.states["a"].up
    assert "not been probed" in watch.states["a"].problem
    assert changes == []


async def test_a_node_becomes_a_provider_with_all_that_is_known_of_it():
    listed = [ListedModel("m", created=5, context_length=4096, capabilities=frozenset({"tools"})), "embed-x", "m"]
    price = NodePrice(per_request_msat=7)
    watch, changes = watch_of(Lists(a=listed), node(price=price))
    await watch.refresh()
    (provider,) = watch.providers
    assert (provider.peer_id, provider.node_name, provider.source) == ("node:a", "a", ProviderSource.NODE)
    assert provider.address == "http://a.test:1/v1"
    assert provider.models == {CHAT: ("m",), EMBEDDINGS: ("embed-x",)}
    assert provider.facts["m"] == ModelFacts(4096, 5, frozenset({"tools"}))
    assert (provider.owned_by, provider.list_price_msat, provider.protocol_version) == ("a", 7, 0)
    state = watch.states["a"]
    assert (state.up, state.problem, state.models) == (True, "", 2)
    assert changes == [("a", True)]
    assert Catalog(watch.providers, 0.0).offering(CHAT, "m")


async def test_models_that_are_configured_are_offered_whatever_the_list_says():
    lists = Lists(a=[ListedModel("y", context_length=9), "z"])
    watch, _ = watch_of(lists, node(models=("x", "y", "x"), owned_by="me"))
    await watch.refresh()
    (provider,) = watch.providers
    assert provider.models == {CHAT: ("x", "y")}
    assert provider.facts == {"y": ModelFacts(9)}
    assert provider.owned_by == "me"


async def test_a_node_without_a_list_is_up_when_its_models_are_configured():
    no_list = NoModelList("UNIMPLEMENTED", "the node has no list of models")
    watch, changes = watch_of(Lists(a=no_list, b=no_list), node("a", models=("m",)), node("b"))
    await watch.refresh()
    assert [p.peer_id for p in watch.providers] == ["node:a"]
    assert "configuration" in watch.states["b"].problem
    assert sorted(changes) == [("a", True), ("b", False)]


async def test_one_failure_takes_a_node_out_and_one_answer_brings_it_back():
    lists = Lists(a=["m"], b=["m"], c=["m"])
    watch, changes = watch_of(lists, node("a"), node("b"), node("c"))
    await watch.refresh()
    assert [p.node_name for p in watch.providers] == ["a", "b", "c"]
    lists.answers["b"] = DOWN
    await watch.refresh()
    assert [p.node_name for p in watch.providers] == ["a", "c"]
    state = watch.states["b"]
    assert (state.up, state.problem, state.models) == (False, DOWN.message, 0)
    lists.answers["b"] = ["n"]
    await watch.refresh()
    assert [p.node_name for p in watch.providers] == ["a", "b", "c"], "in their old order"
    assert changes[3:] == [("b", False), ("b", True)]
    assert watch.states["b"].since >= state.since


async def test_while_nothing_changes_the_providers_are_the_same_object():
    lists = Lists(a=[ListedModel("m", created=1)], b=DOWN)
    watch, changes = watch_of(lists, node("a"), node("b"))
    await watch.refresh()
    first, since = watch.providers, watch.states["a"].since
    # Some servers return the time of the request as the model's creation time.
    lists.answers["a"] = [ListedModel("m", created=2)]
    await watch.refresh()
    assert watch.providers is first
    assert watch.states["a"].since == since
    assert len(changes) == 2
    lists.answers["a"] = [ListedModel("m", created=3), "n"]
    await watch.refresh()
    assert watch.providers is not first
    assert watch.providers[0].facts["m"].created == 1


async def test_callers_that_come_together_share_one_asking():
    lists = Lists(a=["m"])
    lists.hold = asyncio.Event()
    watch, _ = watch_of(lists, node())
    calls = [asyncio.create_task(watch.refresh()) for _ in range(20)]
    await asyncio.sleep(0.02)
    calls[0].cancel()
    lists.hold.set()
    await asyncio.gather(*calls[1:])
    assert lists.asked == ["a"]
    assert watch.providers, "one that gives up does not take it from the others"


async def test_a_report_takes_a_node_out_at_once_and_has_it_asked_soon():
    lists = Lists(a=["m"], b=["m"])
    watch, changes = watch_of(lists, node("a"), node("b"), retry_s=0.1)
    running = asyncio.create_task(watch.run())
    await until(lambda: len(watch.providers) == 2)
    watch.down("node:a")
    assert [p.node_name for p in watch.providers] == ["b"]
    assert changes[-1] == ("a", False)
    watch.down("node:unknown")
    watch.down("02" * 33)
    await until(lambda: len(watch.providers) == 2)
    assert lists.times[-1] - lists.times[0] > 0.09
    assert lists.asked.count("b") == 1
    await ended(running)


async def test_an_answer_from_before_a_report_does_not_bring_the_node_back():
    lists = Lists(a=["m"])
    watch, _ = watch_of(lists, node())
    await watch.refresh()
    lists.hold = asyncio.Event()
    asking = asyncio.create_task(watch.refresh())
    await until(lambda: len(lists.asked) == 2)
    watch.down("node:a")
    lists.hold.set()
    await asking
    assert watch.providers == ()
    await watch.refresh()
    assert watch.providers


async def test_a_node_that_is_down_is_asked_less_and_less_often_up_to_the_refresh_time():
    lists = Lists(a=DOWN)
    watch, _ = watch_of(lists, node(), retry_s=0.02, refresh_s=0.1)
    running = asyncio.create_task(watch.run())
    await until(lambda: len(lists.times) == 6)
    gaps = [b - a for a, b in zip(lists.times, lists.times[1:], strict=False)]
    for gap, at_least in zip(gaps, [0.02, 0.04, 0.08, 0.1, 0.1], strict=True):
        assert gap > at_least * 0.9
    lists.answers["a"] = ["m"]
    await until(lambda: watch.providers)
    await ended(running)


async def test_a_node_that_is_up_is_asked_again_for_new_models():
    lists = Lists(a=["m"])
    watch, _ = watch_of(lists, node(), refresh_s=0.02)
    running = asyncio.create_task(watch.run())
    await until(lambda: watch.providers)
    lists.answers["a"] = ["m", "n"]
    await until(lambda: watch.providers[0].models[CHAT] == ("m", "n"))
    await ended(running)


async def test_a_slow_node_holds_up_no_other():
    lists = Lists(a=["m"])
    held = asyncio.Event()
    real = lists.list_models

    async def list_models(name, timeout_s):
        if name == "slow":
            await held.wait()
        return await real(name, timeout_s)

    lists.list_models = list_models
    watch, _ = watch_of(lists, node("slow"), node("a"), refresh_s=0.02)
    running = asyncio.create_task(watch.run())
    await until(lambda: lists.asked.count("a") > 2)
    assert [p.node_name for p in watch.providers] == ["a"]
    await ended(running)


async def test_without_nodes_there_is_nothing_to_do_until_there_are_some():
    lists = Lists()
    watch, _ = watch_of(lists)
    await watch.refresh()
    running = asyncio.create_task(watch.run())
    await asyncio.sleep(0.01)
    assert (watch.providers, lists.asked, running.done()) == ((), [], False)
    await ended(running)


# With real servers.


async def test_a_node_that_dies_leaves_with_the_first_task_that_finds_it_gone_and_comes_back():
    with http_nodes(HttpNodeThread("alpha", ("m",)), HttpNodeThread("beta", style="ollama")) as servers:
        nodes = [VirtualNode(s.server.name, s.base_url) for s in servers]
        watches = []

        def on_down(provider_id):
            watches[0].down(provider_id)

        upstream = OpenAIHttpUpstream(nodes, on_down=on_down)
        watch, changes = watch_of(upstream, *nodes, retry_s=0.05)
        watches.append(watch)
        running = asyncio.create_task(watch.run())
        await until(lambda: len(watch.providers) == 2)
        assert watch.providers[1].models == {CHAT: ("llama3.2:latest",)}

        await asyncio.to_thread(servers[0].stop)
        body = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
        task = Task(CHAT, "m", body, stream=False)
        quote = await upstream.request_quote(task, "node:alpha", 1)
        with pytest.raises(UpstreamError):
            await upstream.execute(quote, task, 60)
        assert [p.node_name for p in watch.providers] == ["beta"]

        await asyncio.to_thread(servers[0].start)
        await until(lambda: len(watch.providers) == 2)
        assert json.loads((await upstream.execute(quote, task, 60)).body)
        assert changes[-2:] == [("alpha", False), ("alpha", True)]
        await ended(running)
        await upstream.close()


@pytest.fixture
def process():
    command = [sys.executable, "-m", "tests.support.http_node", "--name", "solo"]
    with subprocess.Popen(
        [*command, "--port", "0", "--models", "m,n", "--style", "ollama"], stdout=subprocess.PIPE, text=True
    ) as running:
        word, port = running.stdout.readline().split()
        assert word == "listening"
        yield running, f"http://127.0.0.1:{port}"
        running.kill()


def test_the_stand_in_runs_as_a_process_too(process):
    running, address = process

    def ask(path, document=None):
        data = None if document is None else json.dumps(document).encode()
        with urllib.request.urlopen(address + path, data, timeout=60) as answer:
            return json.load(answer)

    assert [m["id"] for m in ask("/v1/models")["data"]] == ["m", "n"]
    asked = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    said = ask("/v1/chat/completions", asked)["choices"][0]["message"]["content"]
    assert said == "solo says: hi"
    assert [seen["path"] for seen in ask("/_requests")] == ["/v1/models", "/v1/chat/completions"]
    ask("/_behave", {"die_after_chunks": 1})
    with pytest.raises(IncompleteRead):
        ask("/v1/chat/completions", {**asked, "stream": True})
    assert running.wait(60) == 9


async def test_an_unexpected_error_takes_its_node_out_and_blocks_no_other_probe():
    """Regression: all nodes were probed in one task group, and any error ended all probes for good."""
    tasks = BackgroundTasks(get_logger("test"), backoff=Backoff(first_s=0.01, most_s=0.02))
    lists = Lists(a=["m"], b=["m"])
    watch, changes = watch_of(lists, node("a"), node("b"), refresh_s=0.01, start_task=tasks.starter("nodes"))
    async with tasks.running(BackgroundTask("nodes", watch.run)):
        await until(lambda: len(watch.providers) == 2)
        lists.answers["a"] = OverflowError("a number that is none")
        await until(lambda: changes[-1] == ("a", False))
        lists.answers["b"] = ["m", "n"]
        await until(lambda: watch.states["b"].models == 2)
        assert [provider.node_name for provider in watch.providers] == ["b"]
        await until(lambda: tasks.report()["nodes"]["restarts"] >= 2)
        lists.answers["a"] = ["m"]
        await until(lambda: changes[-1] == ("a", True))
    assert not tasks._instances, "nothing asks any more"
