"""``python -m bench.routing``: what a choice of ``auto`` and the list of models cost, in CPU of the gateway's process."""

import argparse
import asyncio
import itertools
import json
import statistics
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from lcp_gateway.app.wiring.routing import BODY_ADAPTERS
from lcp_gateway.http.openai.models import ModelRoutes
from lcp_gateway.http.openai.request_body import parse_task
from lcp_gateway.purchase.order import Order, TaskKind
from lcp_gateway.purchase.quote import Candidate, ProviderSource
from lcp_gateway.routing.auto import AutoChoice, AutoPolicy
from lcp_gateway.routing.catalog import Catalog, ModelFacts, Provider
from lcp_gateway.routing.explicit import RoutingRules
from lcp_gateway.routing.measurements import Measurements, Mode, answer_mode
from lcp_gateway.routing.model_registry import ModelRegistry
from lcp_gateway.routing.offers import Offers
from lcp_gateway.routing.peer_trust import PeerTrust, TrustRules
from lcp_gateway.routing.preferences import parse_preferences
from lcp_gateway.routing.requirements import requirements_of
from lcp_gateway.routing.selection import Selector

_CHAT = TaskKind.CHAT_COMPLETIONS
_MICRO, _MILLI = 1e6, 1e3
_GOLDEN = 0.618034
# After this time, everything that is cached for a second is computed again.
_PAST_A_SECOND_S = 1.5
_NAMES = ("llama-{n}-8b", "Qwen2.5-Coder-{n}-14B", "vendor/chat-{n}-70b", "plain-{n}")
_SETTLED = TrustRules(exposure_base_msat=0, exposure_share_ppm=0, breaker_failures=3, breaker_pause_s=30.0)


class Clock:
    """A clock in seconds that the bench sets, so that entries cached for a second are fresh or expired as measured."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Catalogs:
    """A catalog that never changes."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog

    async def refresh_if_stale(self) -> Catalog:
        return self.catalog


@dataclass(frozen=True, slots=True)
class Size:
    """How large the market is; each model is sold by ``sellers`` providers."""

    models: int
    providers: int
    sellers: int


class Market:
    """The parts that choose, wired as the gateway wires them, over peers of whom nine in ten were measured."""

    def __init__(self, size: Size) -> None:
        self.clock = Clock()
        self.catalog = Catalog(tuple(_providers(size)), 0.0)
        self.records = Measurements(half_life_s=300.0, clock=self.clock)
        standings = PeerTrust(_SETTLED, clock=self.clock)
        registry = ModelRegistry({})
        rules = RoutingRules()
        draws = ((number * _GOLDEN) % 1.0 for number in itertools.count())
        self.draw = draws.__next__
        self.auto = AutoChoice(AutoPolicy(), self.records, standings.readiness, clock=self.clock)
        self.selector = Selector(
            Catalogs(self.catalog),
            adapters=BODY_ADAPTERS,
            rules=rules,
            registry=registry,
            auto=self.auto,
            available=standings.available,
            draw=self.draw,
        )
        self.models = ModelRoutes(
            catalog=lambda: self.catalog,
            offers=self.selector.offers,
            rules=rules,
            registry=registry,
            records=self.records,
            is_ready=lambda provider_id: bool(standings.readiness(provider_id)),
            clock=self.clock,
        )
        pairs = [(p.peer_id, name) for p in self.catalog.providers for name in p.models[_CHAT]]
        self._pairs = itertools.cycle(pairs)
        for number in range(len(pairs)):
            if number % 10:
                self.measure(next(self._pairs))
        for provider in self.catalog.providers:
            # The breaker knows every provider, as in a gateway that has run for a while.
            standings.failed_to_quote(provider.peer_id)
            standings.quoted(provider.peer_id)

    def measure(self, pair: tuple[str, str]) -> None:
        """Record the measurements of one purchase: its price, start, end and pace."""
        provider_id, model = pair
        took_s = 1.0 + sum(map(ord, provider_id + model)) % 97 / 10.0
        self.records.quoted(provider_id, model, round(1_000 * took_s))
        self.records.started(provider_id)
        self.records.finished(provider_id)
        for mode in (Mode.WHOLE, Mode.STREAM):
            self.records.delivered(provider_id, model, mode, first_byte_s=took_s / 10, tokens_per_s=100 / took_s)

    def measure_next(self) -> None:
        """Record a measurement of the next pair of provider and model."""
        self.measure(next(self._pairs))


def _providers(size: Size) -> Iterator[Provider]:
    names = [_NAMES[n % len(_NAMES)].format(n=n) for n in range(size.models)]
    sold: list[list[str]] = [[] for _ in range(size.providers)]
    for number, name in enumerate(names):
        for seller in range(size.sellers):
            sold[(number + seller * 7) % size.providers].append(name)
    for number, models in enumerate(sold):
        if number % 10:
            yield Provider(
                f"02{number:064x}",
                "127.0.0.1:9735",
                2,
                {_CHAT: tuple(models), TaskKind.RESPONSES: tuple(models)},
                max_inflight_jobs=16,
            )
        else:
            yield Provider(
                f"node:n{number}",
                "http://127.0.0.1",
                0,
                {_CHAT: tuple(models), TaskKind.COMPLETIONS: tuple(models)},
                source=ProviderSource.NODE,
                facts={name: ModelFacts(32_768, 1_700_000_000) for name in models},
                list_price_msat=1_000 * (1 + number),
            )


def _body(text_bytes: int, *, nested: bool = False) -> bytes:
    """A chat of about so many bytes; ``nested`` has the word model deeper down too, as a request with tools may."""
    line = 'He said: "as you see"\n\tfor each of them, once more.  '
    turns = max(1, text_bytes // 4_000)
    text = line * max(1, text_bytes // turns // (len(line) + 6))
    document: dict[str, Any] = {
        "messages": [{"role": "user" if turn % 2 else "system", "content": text} for turn in range(turns)],
        "temperature": 0.2,
        "stream": True,
    }
    if nested:
        document["metadata"] = {"model": "another"}
    return json.dumps({**document, "model": "auto"}).encode()


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of CPU: the least disturbed round, and the middle one."""

    best_s: float
    middle_s: float


def _cost(work: Callable[[], object], *, calls: int, rounds: int, before: Callable[[], object] | None = None) -> Cost:
    """Return the CPU of one call; ``before`` runs ahead of each and is not counted."""
    found = []
    for _ in range(rounds):
        used = 0.0
        if before is None:
            started = time.thread_time()
            for _ in range(calls):
                work()
            used = time.thread_time() - started
        else:
            for _ in range(calls):
                before()
                started = time.thread_time()
                work()
                used += time.thread_time() - started
        found.append(used / calls)
    return Cost(min(found), statistics.median(found))


def _run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never waits, without the cost of an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise RuntimeError("it waits")


class Table:
    """Prints lines of costs, each beside the yardstick."""

    def __init__(self, yardstick: Cost) -> None:
        self._yardstick = yardstick

    def head(self, title: str) -> None:
        print(f"\n{title:58} best us  median us  of yardstick")

    def line(self, what: str, cost: Cost) -> None:
        ratio = cost.best_s / self._yardstick.best_s
        print(f"{what:58} {cost.best_s * _MICRO:7.1f}  {cost.middle_s * _MICRO:9.1f}  {ratio:12.2f}")


def _decisions(market: Market, bodies: dict[str, bytes], table: Table, rounds: int) -> None:
    orders = {name: _order(body) for name, body in bodies.items()}
    small = next(iter(orders.values())).task
    offers, wanted = market.selector.offers(), parse_preferences("auto")
    needs = requirements_of(_CHAT, orjson.loads(small.body), len(small.body))

    def decide() -> object:
        return market.auto.decide(offers, _CHAT, answer_mode(small), wanted, needs, market.draw())

    def observe() -> None:
        # The chosen provider, so that measurements of the shortlist change, and another one.
        chosen = market.auto.decide(offers, _CHAT, answer_mode(small), wanted, needs, 0.0).chosen.entry
        market.measure((chosen.provider.peer_id, chosen.model))
        market.measure_next()

    def a_second_goes() -> None:
        market.clock.now += _PAST_A_SECOND_S
        market.measure_next()

    decide()
    table.head("one decision")
    table.line("AutoChoice.decide", _cost(decide, calls=500, rounds=rounds))
    table.line("  after news of the chosen and another", _cost(decide, calls=300, rounds=rounds, before=observe))
    for name, order in orders.items():

        def choose(order: Order = order) -> object:
            return _run(market.selector(order))

        table.line(f"Selector, {name}", _cost(choose, calls=200, rounds=rounds))
    for name, body in bodies.items():

        def whole(body: bytes = body) -> bytes:
            order = _order(body)
            chosen: Candidate = _run(market.selector(order))[0]
            return chosen.adapt(order.task).body

        def apart(body: bytes = body) -> object:
            return _order(body)

        table.line(f"  checks, task and hash, {name}", _cost(apart, calls=100, rounds=rounds))
        table.line(f"  all: checks, choice, splice, {name}", _cost(whole, calls=100, rounds=rounds))
    table.line(
        "the first decision in a second: a new shortlist", _cost(decide, calls=10, rounds=rounds, before=a_second_goes)
    )

    def read_anew() -> object:
        return Offers.of(market.catalog, ModelRegistry({}))

    table.line("another catalog read", _cost(read_anew, calls=2, rounds=rounds))


def _order(body: bytes) -> Order:
    return Order.of(parse_task(_CHAT, body), request_id="req_1", key_id="", limit_msat=None)


async def _list(market: Market, table: Table, rounds: int) -> None:
    def a_second_goes() -> None:
        market.clock.now += _PAST_A_SECOND_S

    def render() -> object:
        return _run(market.models.list(None))  # type: ignore[arg-type]

    size = len(_run(market.models.list(None)).body)  # type: ignore[arg-type]
    table.head(f"GET /v1/models ({size / 1024:.0f} KiB)")
    table.line("rendered again", _cost(render, calls=5, rounds=rounds, before=a_second_goes))
    table.line("held", _cost(render, calls=200, rounds=rounds))

    async def nothing(_request: web.Request) -> web.Response:
        return web.Response(body=b"{}")

    app = web.Application()
    app.router.add_get("/v1/models", market.models.list)
    app.router.add_get("/nothing", nothing)
    print(f"\n{'over HTTP, client and server in one process':58} best ms  median ms")
    async with TestClient(TestServer(app)) as client:
        for what, path, step_s in (
            ("an empty answer, for comparison", "/nothing", 0.0),
            ("/v1/models, rendered again", "/v1/models", _PAST_A_SECOND_S),
            ("/v1/models, held", "/v1/models", 0.0),
        ):
            found = []
            for _ in range(rounds * 5):
                market.clock.now += step_s
                started = time.perf_counter()
                async with client.get(path) as response:
                    await response.read()
                found.append(time.perf_counter() - started)
            print(f"{what:58} {min(found) * _MILLI:7.2f}  {statistics.median(found) * _MILLI:9.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.routing", description=__doc__)
    parser.add_argument("--models", type=int, default=1_000)
    parser.add_argument("--providers", type=int, default=50)
    parser.add_argument("--sellers", type=int, default=1, help="providers that sell each model")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    market = Market(Size(arguments.models, arguments.providers, arguments.sellers))
    bodies = {
        "300 B": _body(200),
        "40 KB": _body(40_000),
        "40 KB with another model inside": _body(40_000, nested=True),
    }
    print(
        f"{arguments.models} models, {arguments.providers} providers, {arguments.sellers} sell each; "
        f"bodies of {', '.join(f'{len(body):,} B' for body in bodies.values())}"
    )
    large = bodies["40 KB"]
    yardstick = _cost(lambda: json.loads(large), calls=100, rounds=arguments.rounds)
    table = Table(yardstick)
    table.head("yardstick")
    table.line("json.loads of the 40 KB body", yardstick)
    table.line("orjson.loads of it", _cost(lambda: orjson.loads(large), calls=200, rounds=arguments.rounds))
    _decisions(market, bodies, table, arguments.rounds)
    asyncio.run(_list(market, table, arguments.rounds))


if __name__ == "__main__":
    main()
