"""GET /v1/models and /v1/models/{id}: each model once, with its metadata."""

from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.openai.models import ModelRoutes
from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.routing.catalog import Catalog, ModelFacts
from lcp_gateway.routing.explicit import RoutingRules
from lcp_gateway.routing.measurements import Measurements
from lcp_gateway.routing.model_registry import ModelCard, ModelRegistry
from lcp_gateway.routing.offers import Offers
from tests.routing.offering import CHAT, provider

NOW = 1_700_000_000


class Listing:
    """The list of some providers' models; the test sets the clock and swaps the catalog."""

    def __init__(self, *providers, cards=None, charge=None, **rules) -> None:
        self.now = 0.0
        self.there: dict[str, bool] = {}
        self.readings = 0
        self.rules = RoutingRules(**rules)
        self.registry = ModelRegistry({k: ModelCard(**v) for k, v in (cards or {}).items()})
        self.records = Measurements(half_life_s=300, clock=lambda: self.now)
        self.offer(*providers)
        self.models = ModelRoutes(
            catalog=lambda: self.catalog,
            offers=self._offers,
            rules=self.rules,
            registry=self.registry,
            records=self.records,
            is_ready=lambda provider_id: self.there.get(provider_id, True),
            charge=charge,
            clock=lambda: self.now,
        )

    def offer(self, *providers) -> None:
        self.catalog = Catalog(providers, 0.0)

    def _offers(self):
        self.readings += 1
        return Offers.of(self.catalog, self.registry)

    @asynccontextmanager
    async def _client(self):
        app = web.Application()
        app.router.add_get("/v1/models", self.models.list)
        app.router.add_get("/v1/models/{model:.+}", self.models.get)
        async with TestClient(TestServer(app)) as client:
            yield client

    async def list(self):
        async with self._client() as client:
            response = await client.get("/v1/models")
            assert (response.status, response.content_type) == (200, "application/json")
            document = await response.json()
        assert document["object"] == "list"
        return document["data"]

    async def one(self, path_or_name):
        async with self._client() as client:
            response = await client.get("/v1/models/" + path_or_name)
            return await response.json()


def listed(*providers, **more) -> Listing:
    return Listing(*providers, **more)


async def test_every_model_is_listed_once_with_all_its_providers_by_name():
    found = await listed(
        provider("b", "m2", "m1"), provider("node:n", "m1"), provider("a", "m1", kind=TaskKind.COMPLETIONS)
    ).list()
    assert [one["id"] for one in found] == ["m1", "m2"]
    assert [one["lcp"]["providers"] for one in found] == [["b", "node:n", "a"], ["b"]]
    assert [one["lcp"]["endpoints"] for one in found] == [["chat", "completions"]] * 2


async def test_a_model_has_openais_fields_and_its_known_facts():
    card = {"params_b": 7.5, "context_length": 8_192, "capabilities": ("tools", "code"), "owned_by": "me"}
    (one,) = await listed(
        provider("node:n", "m", facts={"m": ModelFacts(4_096, NOW)}, list_price_msat=3_000), cards={"m": card}
    ).list()
    assert one == {
        "id": "m",
        "object": "model",
        "created": NOW,
        "owned_by": "me",
        "lcp": {
            "providers": ["node:n"],
            "endpoints": ["chat", "completions"],
            "context_length": 8_192,
            "capabilities": ["code", "tools"],
            "params_b": 7.5,
            "price_msat": 3_000,
            "ready": True,
        },
    }


async def test_unknown_facts_are_null():
    (one,) = await listed(provider("a", "mystery")).list()
    assert (one["created"], one["owned_by"]) == (0, "lcp")
    lcp = one["lcp"]
    assert (lcp["context_length"], lcp["params_b"], lcp["price_msat"]) == (None, None, None)
    assert lcp["capabilities"] == [] and "dimensions" not in lcp


async def test_an_embedding_model_has_dimensions_and_one_endpoint():
    (one,) = await listed(
        provider("node:e", "bge-m3", kind=TaskKind.EMBEDDINGS), cards={"bge-m3": {"dimensions": 64}}
    ).list()
    assert one["lcp"]["dimensions"] == 64
    assert one["lcp"]["endpoints"] == ["embeddings"]


@pytest.mark.parametrize(("cards", "owner"), [({}, "OpenClaw"), ({"m": {"owned_by": "the operator"}}, "the operator")])
async def test_the_owner_is_the_operators_word_or_the_first_providers(cards, owner):
    both = provider("node:n", "m", owned_by="OpenClaw"), provider("a", "m")
    (one,) = await listed(*both, cards=cards).list()
    assert one["owned_by"] == owner


async def test_the_price_is_the_lowest_that_is_listed_or_was_asked():
    listing = listed(provider("a", "m"), provider("b", "m"), provider("node:n", "m", list_price_msat=9_000))
    assert (await listing.list())[0]["lcp"]["price_msat"] == 9_000
    listing.records.quoted("a", "m", 20_000)
    listing.records.quoted("b", "m", 5_000)
    listing.records.quoted("b", "other", 1)
    listing.records.quoted("node:n", "m", 1)
    listing.now += 2
    assert (await listing.list())[0]["lcp"]["price_msat"] == 5_000


async def test_a_node_that_is_free_is_listed_as_such():
    (one,) = await listed(provider("node:n", "m", list_price_msat=0)).list()
    assert one["lcp"]["price_msat"] == 0


async def test_the_list_is_held_for_a_second_and_no_longer():
    listing = listed(provider("a", "m"))
    first = await listing.list()
    listing.there["a"] = False
    listing.now = 1.0
    assert await listing.list() == first
    assert listing.readings == 1
    listing.now = 1.1
    assert (await listing.list())[0]["lcp"]["ready"] is False


async def test_another_catalog_is_listed_at_once():
    listing = listed(provider("a", "m"))
    await listing.list()
    listing.offer(provider("a", "m2"))
    assert [one["id"] for one in await listing.list()] == ["m2"]


async def test_a_model_is_ready_while_one_of_its_providers_is():
    listing = listed(provider("a", "m"), provider("b", "m"))
    listing.there["a"] = False
    assert (await listing.list())[0]["lcp"]["ready"] is True


async def test_without_providers_the_list_is_empty():
    assert await listed().list() == []


async def test_the_models_of_an_allowlist_are_listed_though_no_provider_has_them():
    allowed = frozenset({"m", "gone"})
    gone, there = await listed(provider("a", "m", "m2"), allowlist=allowed).list()
    assert (gone["id"], there["id"]) == ("gone", "m")
    assert (gone["lcp"]["providers"], gone["lcp"]["ready"]) == ([], False)
    assert gone["owned_by"] == "lcp"
    assert there["lcp"]["ready"] is True


async def test_an_allowlist_that_is_not_kept_to_hides_nothing():
    found = await listed(provider("a", "m", "m2"), allowlist=frozenset({"m"}), allow_unlisted=True).list()
    assert [one["id"] for one in found] == ["m", "m2"]


@pytest.mark.parametrize("path", ["vendor/model:8b", "vendor%2Fmodel:8b", "vendor%2fmodel%3A8b"])
async def test_a_name_may_hold_slashes_encoded_or_not(path):
    assert (await listed(provider("a", "vendor/model:8b")).one(path))["id"] == "vendor/model:8b"


async def test_one_model_is_as_in_the_list():
    listing = listed(provider("a", "m"), provider("b", "m", "m2"))
    assert await listing.one("m") == (await listing.list())[0]


async def test_an_alias_is_a_model_that_names_its_real_one():
    listing = listed(provider("a", "real"), cards={"real": {"aliases": ("gpt-4o-mini",)}})
    one = await listing.one("gpt-4o-mini")
    assert (one["id"], one["lcp"]["alias_of"]) == ("gpt-4o-mini", "real")
    assert one["lcp"]["providers"] == ["a"]
    assert "alias_of" not in (await listing.one("real"))["lcp"]


@pytest.mark.parametrize("name", ["auto", "auto:fast", "gpt-4o"])
async def test_auto_and_its_aliases_are_models_too(name):
    listing = listed(provider("a", "m"), provider("b", "m"), cards={"auto": {"aliases": ("gpt-4o",)}})
    listing.there["a"] = False
    one = await listing.one(name)
    assert (one["id"], one["object"], one["lcp"]["ready"]) == (name, "model", True)
    listing.there["b"] = False
    assert (await listing.one(name))["lcp"]["ready"] is False


@pytest.mark.parametrize("rules", [{}, {"allowlist": frozenset({"other"})}])
async def test_a_model_without_a_provider_or_that_may_not_be_used_is_not_found(rules):
    listing = listed(provider("a", *(["m"] if rules else ["other"])), **rules)

    class Request:
        match_info = {"model": "m"}  # noqa: RUF012 - as aiohttp has it

    with pytest.raises(ApiError) as caught:
        await listing.models.get(Request())
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")
    assert caught.value.param == "model"


async def test_every_kind_has_its_word():
    both = (
        provider("a", "m", kind=TaskKind.RESPONSES),
        provider("b", "m", kind=CHAT),
        provider("c", "m", kind=TaskKind.EMBEDDINGS),
    )
    assert (await listed(*both).list())[0]["lcp"]["endpoints"] == ["chat", "responses", "completions", "embeddings"]


def with_mark_up(model, price_msat):
    return price_msat * 2 if model == "dear" else price_msat + 7


async def test_customers_see_their_charge_beside_the_price():
    found = await listed(
        provider("node:n", "dear", "m", list_price_msat=3_000), provider("a", "mystery"), charge=with_mark_up
    ).list()
    prices = {one["id"]: (one["lcp"]["price_msat"], one["lcp"]["charge_msat"]) for one in found}
    assert prices == {"dear": (3_000, 6_000), "m": (3_000, 3_007), "mystery": (None, None)}


async def test_a_free_result_may_be_charged_all_the_same():
    listing = listed(provider("node:n", "m", list_price_msat=0), charge=with_mark_up)
    assert (await listing.one("m"))["lcp"]["charge_msat"] == 7


async def test_an_alias_is_charged_like_its_model():
    listing = listed(
        provider("node:n", "dear", list_price_msat=3_000), cards={"dear": {"aliases": ("nick",)}}, charge=with_mark_up
    )
    assert (await listing.one("nick"))["lcp"]["charge_msat"] == 6_000


async def test_where_there_are_no_customers_there_is_no_charge():
    (one,) = await listed(provider("node:n", "m", list_price_msat=3_000)).list()
    assert "charge_msat" not in one["lcp"]
