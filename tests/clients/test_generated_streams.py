"""Generated streams, read by the official Python SDK from a node itself and through a gateway that sells its answers."""

import asyncio
from collections import Counter

import openai
import pytest

from tests.support.generated_streams import ill_formed, well_formed
from tests.support.node_thread import eventually
from tests.support.raw_node import raw_node
from tests.system.routing.providers import served_by
from tests.system.selling.seller import Office, selling

SEED = 20_261_129
COUNT = 200
AT_ONCE = 8
PRICE_MSAT = 1_000
FILLED_MSAT = 10 * COUNT * PRICE_MSAT
ENDS = {"response.completed", "response.incomplete", "response.failed", "error"}


@pytest.fixture(scope="module")
def sold():
    """The node with all streams, and a gateway over it."""
    cases = well_formed(SEED, COUNT) + ill_formed(SEED, COUNT)
    with raw_node(*(case.scripted for case in cases)) as node:
        row = {
            "name": "raw",
            "base_url": node.base_url,
            "endpoints": ["chat", "responses"],
            "price_per_request_msat": PRICE_MSAT,
        }
        settings = {
            name.removeprefix("LCP_GATEWAY_").lower(): value for name, value in selling(markup_percent=0).items()
        }
        with served_by(row, **settings) as gateway:
            yield cases, node, gateway
            Office(gateway.port).is_in_order()


async def read(client, case, number, *, stop_at_end):
    """Ask for one stream; return its events and how it ended: cleanly, or by which error."""
    text = f"case-{number}"
    events = []
    try:
        if case.is_chat:
            stream = await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": text}], stream=True
            )
        else:
            stream = await client.responses.create(model="m", input=text, stream=True)
        async with stream:
            async for event in stream:
                events.append(event.model_dump())
                if stop_at_end and events[-1].get("type") in ENDS:
                    # From the node itself more may never come.
                    break
    except (openai.OpenAIError, ValueError) as error:
        return events, type(error).__name__
    return events, "clean"


async def read_all(base_url, key, cases, first, *, stop_at_end):
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(number, case):
        async with gate:
            return await read(client, case, first + number, stop_at_end=stop_at_end)

    async with openai.AsyncOpenAI(base_url=base_url, api_key=key, max_retries=0) as client:
        return await asyncio.gather(*(one(number, case) for number, case in enumerate(cases)))


def bought(gateway, cases, first):
    """Read streams through the gateway as a customer; return each result and charge."""
    customer = Office(gateway.port).customer(FILLED_MSAT)
    came = asyncio.run(read_all(gateway.api_url, customer.key, cases, first, stop_at_end=False))
    # A client may have its last event before the gateway has captured what it held.
    eventually(lambda: customer.balance()["held_msat"] == 0)
    return came, FILLED_MSAT - customer.balance()["balance_msat"]


def test_a_well_formed_stream_has_the_same_events_and_the_same_end_through_the_gateway(sold):
    """Once streams that openai-python accepts from the node itself were judged cut, charged, and blamed on the provider."""
    cases, node, gateway = sold
    cases = cases[:COUNT]
    direct = asyncio.run(read_all(node.base_url, "none", cases, 0, stop_at_end=True))
    came, charged_msat = bought(gateway, cases, 0)
    wrong = {
        (number, case.what): (len(one[0]), one[1], len(other[0]), other[1])
        for number, (case, one, other) in enumerate(zip(cases, direct, came, strict=True))
        if one != other or other[1] != "clean"
    }
    assert not wrong
    assert len({case.what for case in cases}) == 5
    assert charged_msat == COUNT * PRICE_MSAT


def test_an_ill_formed_stream_never_ends_cleanly_and_costs_its_customer_nothing(sold):
    """Once an error, a page or an empty result was recorded as delivered and charged, and its provider preferred for its speed."""
    cases, _, gateway = sold
    cases = cases[COUNT:]
    came, charged_msat = bought(gateway, cases, COUNT)
    clean = [case.what for case, (_, end) in zip(cases, came, strict=True) if end == "clean"]
    assert not clean
    assert charged_msat == 0
    # Once the gateway sent another error event after the provider's.
    error_counts = [[event.get("type") for event in events].count("error") for events, _ in came]
    assert max(error_counts) == 1
    assert {
        end for case, (_, end), errors in zip(cases, came, error_counts, strict=True) if errors and not case.is_chat
    } == {"APIConnectionError"}
    assert Counter(case.what.partition(",")[0] for case in cases).keys() >= {"cut", "page", "nothing"}
