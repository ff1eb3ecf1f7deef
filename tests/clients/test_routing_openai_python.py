"""The official SDK leaves the choice to the gateway: three peers, a node like Ollama, and one that dies on the way."""

import asyncio
import time
from collections import Counter

import openai
import pytest

from tests.support.http_node import HttpNodeThread
from tests.support.node_thread import eventually
from tests.system.routing.providers import NodeProcess, agrees, models_of, nodes_of, row, served_by, until

HELLO = [{"role": "user", "content": "hello there"}]
MORTAL = "node:mortal"
# The first model of the mortal node, which no other provider has.
ITS_MODEL = "qwen2.5-coder-14b"
# So high that every provider gets its share of a short run.
TEMPERATURE = 5
ENOUGH = 200


def whole_chat(client):
    raw = client.chat.completions.with_raw_response.create(model="auto", messages=HELLO)
    answer = raw.parse()
    assert answer.model == answer.routing_info["model"]
    return agrees(answer.routing_info, raw.headers, answer.choices[0].message.content)


def streamed_chat(client):
    raw = client.chat.completions.with_raw_response.create(model="auto", messages=HELLO, stream=True)
    first, *chunks = list(raw.parse())
    assert all("routing_info" not in chunk.model_extra for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in [first, *chunks])
    return agrees(first.routing_info, raw.headers, text)


def whole_response(client):
    raw = client.responses.with_raw_response.create(model="auto", input="hello there")
    answer = raw.parse()
    return agrees(answer.routing_info, raw.headers, answer.output_text)


def streamed_response(client):
    raw = client.responses.with_raw_response.create(model="auto", input="hello there", stream=True)
    first, *events = list(raw.parse())
    assert first.type == "response.created"
    assert all("routing_info" not in event.model_extra for event in events)
    assert events[-1].type == "response.completed"
    return agrees(first.routing_info, raw.headers, events[-1].response.output_text)


CALLS = (whole_chat, streamed_chat, whole_response, streamed_response)


@pytest.fixture(scope="module")
def ollama():
    with HttpNodeThread(name="ollama", style="ollama") as node:
        yield node


@pytest.fixture(scope="module")
def mortal():
    with NodeProcess("mortal", ITS_MODEL) as node:
        yield node


@pytest.fixture(scope="module")
def running(ollama, mortal):
    rows = [
        row(ollama, endpoints=["chat", "responses"]),
        row(mortal, endpoints=["chat", "responses"], price_per_request_msat=500),
    ]
    with served_by(*rows, embedded=True, routing_temperature=TEMPERATURE, routing_half_life_s=1) as process:
        until(lambda: len(models_of(process)) == 6)
        yield process


@pytest.fixture(scope="module")
def client(running):
    with openai.OpenAI(base_url=running.api_url, api_key="unused", max_retries=0) as made:
        yield made


@pytest.fixture
def alive(mortal, running):
    """The mortal node is up before a test, and after it."""
    yield mortal
    if not mortal.is_running():
        mortal.start()
    until(lambda: nodes_of(running)["mortal"]["up"])


def peers_that_accepted(running):
    return Counter(event["peer_id"] for event in running.events("accept"))


def test_every_provider_answers_some_and_each_answer_names_its_own(client, running, alive):
    before = peers_that_accepted(running)
    answered = Counter()
    while len(answered) < 5:
        for call in CALLS:
            answered[call(client)] += 1
        assert answered.total() < ENOUGH, answered
    of_peers = {provider: count for provider, count in answered.items() if not provider.startswith("node:")}
    assert dict(peers_that_accepted(running) - before) == of_peers
    assert set(answered) == {"node:ollama", MORTAL, *of_peers} and len(of_peers) == 3


def test_a_node_that_dies_in_the_middle_of_a_run_is_avoided_and_used_again(client, running, alive):
    def run_until(done):
        answered = Counter()
        while not done(answered):
            for call in CALLS:
                answered[call(client)] += 1
            assert answered.total() < ENOUGH, answered
        return answered

    run_until(lambda answered: answered[MORTAL] >= 2 and len(answered) == 5)
    alive.kill()
    # The kernel tells the gateway that the connections that it holds are closed.
    time.sleep(0.05)
    left = run_until(lambda answered: answered.total() >= 24)
    assert MORTAL not in left
    until(lambda: nodes_of(running)["mortal"]["up"] is False)
    assert ITS_MODEL not in models_of(running)
    alive.start()
    until(lambda: nodes_of(running)["mortal"]["up"])
    assert ITS_MODEL in models_of(running)
    run_until(lambda answered: answered[MORTAL] >= 2)


def test_a_node_that_is_found_dead_by_a_request_costs_that_request_nothing(ollama):
    """Here only the requests themselves detect it."""
    with NodeProcess("mortal", ITS_MODEL) as node:
        rows = [row(ollama), row(node, price_per_request_msat=500)]
        with served_by(*rows, routing_temperature=TEMPERATURE, nodes_refresh_s=60) as process:
            eventually(lambda: all(one["models"] for one in nodes_of(process).values()))
            node.kill()
            time.sleep(0.05)
            with openai.OpenAI(base_url=process.api_url, api_key="unused", max_retries=0) as client:
                answered = [CALLS[number % 2](client) for number in range(20)]
            assert set(answered) == {"node:ollama"}
            decided = [line for line in process.json_logs() if line["event"] == "routing decision"]
            # It was a candidate until its failure was detected.
            assert MORTAL in str(decided[0]) and MORTAL not in str(decided[-1])


async def test_the_async_client_gets_all_its_answers_over_the_death_of_a_free_node(ollama):
    """Requests that run at the node when it dies cost nothing, and the SDK retries them by itself."""
    with NodeProcess("mortal", ITS_MODEL, "--delay-s", "0.05") as node:
        rows = [row(ollama), row(node)]
        with served_by(*rows, routing_temperature=TEMPERATURE) as process:
            async with openai.AsyncOpenAI(base_url=process.api_url, api_key="unused", max_retries=2) as client:
                answered = await run_over_a_death(client, node)
    before, after = answered
    assert before[MORTAL] and not after[MORTAL]
    assert before.total() >= 30 and after.total() == 30


async def run_over_a_death(client, node):
    found = [Counter(), Counter()]
    # A node that was slow to answer at the start is taken in a little later.
    async with asyncio.timeout(60):
        while ITS_MODEL not in [model.id async for model in client.models.list()]:
            await asyncio.sleep(0.05)

    async def work(number):
        left = 5
        while left:
            # Those that run there when it dies do not count for it: one at least has to have ended.
            if number == 0 and found[False].total() >= 30 and found[False][MORTAL] and node.is_running():
                node.kill()
            is_dead = not node.is_running()
            raw = await client.chat.completions.with_raw_response.create(model="auto", messages=HELLO)
            answer = raw.parse()
            provider = agrees(answer.routing_info, raw.headers, answer.choices[0].message.content)
            found[is_dead][provider] += 1
            assert found[False].total() < ENOUGH, found
            left -= is_dead

    await asyncio.gather(*(work(number) for number in range(6)))
    return found


async def test_the_async_client_streams_both_kinds(running, alive):
    async with openai.AsyncOpenAI(base_url=running.api_url, api_key="unused", max_retries=0) as client:
        for _ in range(4):
            raw = await client.chat.completions.with_raw_response.create(model="auto", messages=HELLO, stream=True)
            chunks = [chunk async for chunk in raw.parse()]
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            agrees(chunks[0].routing_info, raw.headers, text)
            raw = await client.responses.with_raw_response.create(model="auto", input="hello there", stream=True)
            events = [event async for event in raw.parse()]
            agrees(events[0].routing_info, raw.headers, events[-1].response.output_text)


@pytest.mark.parametrize(
    ("model", "provider"), [("auto:free", "node:ollama"), ("auto:code", MORTAL), ("auto:code+fast", MORTAL)]
)
def test_words_after_auto_set_preferences(client, alive, model, provider):
    for _ in range(5):
        raw = client.chat.completions.with_raw_response.create(model=model, messages=HELLO)
        answer = raw.parse()
        text = answer.choices[0].message.content
        assert agrees(answer.routing_info, raw.headers, text) == provider


def test_a_model_that_is_named_says_nothing_of_routing(client, alive):
    for model in (ITS_MODEL, "llama3.2:latest", "echo-1"):
        raw = client.chat.completions.with_raw_response.create(model=model, messages=HELLO)
        assert "x-lcp-routing" not in raw.headers
        assert "routing_info" not in raw.parse().model_extra
