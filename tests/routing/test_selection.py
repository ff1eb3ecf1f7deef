"""From an order to its candidates: aliases, defaults, adapters, ``auto``, and the order in which providers are asked."""

import json
from dataclasses import dataclass, field

import pytest

from lcp_gateway.adapters.completions import NotAdaptable
from lcp_gateway.app.wiring.routing import BODY_ADAPTERS
from lcp_gateway.purchase.order import Order, Task, TaskKind
from lcp_gateway.routing.adaptation import COMPLETIONS_AS_CHAT
from lcp_gateway.routing.auto import AutoChoice, AutoPolicy, replay
from lcp_gateway.routing.catalog import Catalog
from lcp_gateway.routing.explicit import ContextTooLong, ModelNotFound, NoProvider, RoutingRules
from lcp_gateway.routing.measurements import Measurements, Mode, answer_mode
from lcp_gateway.routing.model_registry import ModelCard, ModelRegistry
from lcp_gateway.routing.peer_trust import PeerTrust, TrustRules
from lcp_gateway.routing.selection import Selector
from tests.routing.offering import CHAT, provider
from tests.support.cases import each_case

RESPONSES, COMPLETIONS, EMBEDDINGS = (TaskKind.RESPONSES, TaskKind.COMPLETIONS, TaskKind.EMBEDDINGS)
FIELDS = {
    CHAT: b'"messages" : [1]',
    RESPONSES: b'"input" : "x"',
    COMPLETIONS: b'"prompt" : "x"',
    EMBEDDINGS: b'"input" : "x"',
}


def task(model="m", kind=CHAT, *, more=b"", stream=False) -> Task:
    body = b' {"model" : ' + json.dumps(model).encode() + b" , " + FIELDS[kind] + more + b" }\n"
    return Task(kind, model, body, stream=stream)


def order(wanted: Task) -> Order:
    return Order.of(wanted, request_id="req_1", key_id="", limit_msat=None)


@dataclass
class CatalogSource:
    """A catalog source: the current catalog, and the one after a refresh."""

    catalog: Catalog
    fresh: Catalog | None = None
    refreshes: int = 0

    async def refresh_if_stale(self):
        self.refreshes += 1
        self.catalog = self.fresh or self.catalog
        return self.catalog


@dataclass
class SelectorUnderTest:
    """A selector among some providers, with its dependencies exposed to the test."""

    providers: tuple
    cards: dict = field(default_factory=dict)
    rules: dict = field(default_factory=dict)
    fresh: tuple | None = None
    draw: float = 0.0
    now: float = 0.0
    decisions: list = field(default_factory=list)
    asked: list = field(default_factory=list)

    def __post_init__(self):
        self.catalogs = CatalogSource(
            Catalog(tuple(self.providers), 0.0), None if self.fresh is None else Catalog(tuple(self.fresh), 1.0)
        )
        self.records = Measurements(half_life_s=300, clock=lambda: self.now)
        self.standings = PeerTrust(
            TrustRules(exposure_base_msat=0, exposure_share_ppm=0, breaker_failures=2, breaker_pause_s=10),
            clock=lambda: self.now,
        )
        self.auto = AutoChoice(AutoPolicy(), self.records, self.standings.readiness, clock=lambda: self.now)
        self.selector = Selector(
            self.catalogs,
            adapters=BODY_ADAPTERS,
            rules=RoutingRules(**self.rules),
            registry=ModelRegistry({name: ModelCard(**said) for name, said in self.cards.items()}),
            auto=self.auto,
            available=self._available,
            on_decision=lambda order, decision: self.decisions.append((order, decision)),
            draw=lambda: self.draw,
        )

    def _available(self, provider_id):
        self.asked.append(provider_id)
        return self.standings.available(provider_id)

    async def ids(self, wanted: Task) -> list[str]:
        return [one.provider_id for one in await self.selector(order(wanted))]

    async def bought(self, wanted: Task) -> Task:
        """Return the task that the first candidate gets."""
        return (await self.selector(order(wanted)))[0].adapt(wanted)

    def explain(self, wanted: Task):
        return self.selector.explain(order(wanted))

    def measured(self, provider_id, model, seconds):
        for _ in range(3):
            self.records.delivered(provider_id, model, Mode.WHOLE, first_byte_s=None, tokens_per_s=100 / seconds)

    def rests(self, provider_id):
        for _ in range(2):
            self.standings.failed_to_quote(provider_id)


def among(*providers, **more) -> SelectorUnderTest:
    return SelectorUnderTest(providers, **more)


# -- a model that the client named ------------------------------------------------------------------


async def test_a_named_model_gives_every_provider_once_and_its_task_is_not_touched():
    wanted = task()
    found = await among(provider("a", "m"), provider("b", "other"), provider("node:n", "m")).selector(order(wanted))
    assert sorted(one.provider_id for one in found) == ["a", "node:n"]
    assert all(one.adapt(wanted) is wanted for one in found)
    assert all((one.adapter, one.routing) == ("", None) for one in found)


async def test_a_card_without_defaults_changes_nothing():
    wanted = task()
    card = {"context_length": 4_096, "capabilities": ("tools",), "max_price_msat": 5}
    assert await among(provider("a", "m"), cards={"m": card}).bought(wanted) is wanted


async def test_an_alias_is_replaced_in_the_body_and_nothing_else_is():
    wanted = task("gpt-4o-mini", more=b', "metadata":{"model":"gpt-4o-mini"}')
    bought = await among(provider("a", "real"), cards={"real": {"aliases": ("gpt-4o-mini",)}}).bought(wanted)
    assert bought.model == "real"
    assert bought.body == wanted.body.replace(b'"gpt-4o-mini"', b'"real"', 1)


async def test_a_model_by_its_real_name_stays_as_it_is_though_it_has_an_alias():
    wanted = task("real")
    choosing = among(provider("a", "real"), cards={"real": {"aliases": ("gpt-4o-mini",)}})
    assert await choosing.bought(wanted) is wanted


async def test_an_alias_may_stand_for_auto():
    choosing = among(provider("a", "m"), cards={"auto": {"aliases": ("gpt-4o",)}})
    wanted = task("gpt-4o")
    (candidate,) = await choosing.selector(order(wanted))
    assert candidate.adapt(wanted).body == wanted.body.replace(b"gpt-4o", b"m")
    assert candidate.routing["model"] == "m"


async def test_by_score_the_faster_peer_of_a_named_model_is_asked_first():
    choosing = among(provider("a", "m"), provider("b", "m"), rules={"by_score": True})
    choosing.measured("a", "m", 10)
    choosing.measured("b", "m", 1)
    assert await choosing.ids(task()) == ["b", "a"]


async def test_among_peers_alone_the_daemons_order_holds_whatever_was_measured():
    choosing = among(provider("a", "m"), provider("b", "m"))
    choosing.measured("a", "m", 10)
    choosing.measured("b", "m", 1)
    assert await choosing.ids(task()) == ["a", "b"]


async def test_where_a_node_offers_a_named_model_too_the_score_decides():
    choosing = among(provider("a", "m"), provider("node:n", "m"))
    choosing.measured("a", "m", 10)
    choosing.measured("node:n", "m", 1)
    assert await choosing.ids(task()) == ["node:n", "a"]


async def test_by_score_only_providers_that_may_be_asked_are_there():
    peers = (provider(name, "m") for name in "abc")
    choosing = among(*peers, rules={"by_score": True})
    choosing.rests("b")
    assert sorted(await choosing.ids(task())) == ["a", "c"]


async def test_a_mapped_model_has_one_provider_which_may_be_a_node():
    choosing = among(provider("a", "m"), provider("node:n", "m"), rules={"model_peers": {"m": "node:n"}})
    assert await choosing.ids(task()) == ["node:n"]


async def test_an_alias_of_a_mapped_model_goes_where_the_model_goes():
    choosing = among(
        provider("a", "m"), provider("b", "m"), cards={"m": {"aliases": ("x",)}}, rules={"model_peers": {"m": "b"}}
    )
    assert await choosing.ids(task("x")) == ["b"]


async def test_an_allowlist_may_name_the_model_or_its_alias():
    for allowed in ("m", "x"):
        rules = {"allowlist": frozenset({allowed})}
        choosing = among(provider("a", "m"), cards={"m": {"aliases": ("x",)}}, rules=rules)
        assert await choosing.ids(task("x")) == ["a"]
    with pytest.raises(ModelNotFound, match="allowlist"):
        await choosing.ids(task("m"))


async def test_a_default_peer_gets_what_peers_can_take_and_nodes_keep_their_own():
    choosing = among(
        provider("a", "m"), provider("b", "other"), provider("node:n", "mine"), rules={"default_peer_id": "b"}
    )
    assert await choosing.ids(task("m")) == ["b"]
    assert await choosing.ids(task("mine")) == ["node:n"]


# -- the operator's defaults -----------------------------------------------------------------------


DEFAULTS = {"default_temperature": 0.2, "default_max_tokens": 300}


@pytest.mark.parametrize(
    ("kind", "limit"), [(CHAT, "max_tokens"), (RESPONSES, "max_output_tokens"), (COMPLETIONS, "max_tokens")]
)
async def test_defaults_are_added_where_there_is_nothing(kind, limit):
    wanted = task(kind=kind)
    bought = await among(provider("a", "m", kind=kind), cards={"m": DEFAULTS}).bought(wanted)
    added = f',"temperature":0.2,"{limit}":300'.encode()
    assert bought.body == wanted.body.replace(b" }\n", b" " + added + b"}\n")


@pytest.mark.parametrize(
    ("kind", "more", "added"),
    [
        (CHAT, b',"temperature":1', {"max_tokens": 300}),
        (CHAT, b',"max_tokens":5', {"temperature": 0.2}),
        (CHAT, b',"max_completion_tokens":5', {"temperature": 0.2}),
        (CHAT, b',"max_tokens":null,"temperature":null', {}),
        (RESPONSES, b',"max_output_tokens":5', {"temperature": 0.2}),
        (RESPONSES, b',"max_tokens":5', {"temperature": 0.2, "max_output_tokens": 300}),
        (COMPLETIONS, b',"max_tokens":5,"temperature":0', {}),
    ],
)
async def test_what_the_client_said_is_never_overruled(kind, more, added):
    wanted = task(kind=kind, more=more)
    bought = await among(provider("a", "m", kind=kind), cards={"m": DEFAULTS}).bought(wanted)
    assert json.loads(bought.body) == json.loads(wanted.body) | added
    assert (bought is wanted) is (not added)


async def test_embeddings_have_no_defaults():
    wanted = task(kind=EMBEDDINGS)
    choosing = among(provider("node:e", "m", kind=EMBEDDINGS), cards={"m": DEFAULTS})
    assert await choosing.bought(wanted) is wanted


async def test_defaults_are_those_of_the_model_that_is_bought():
    cards = {"m": DEFAULTS | {"aliases": ("x",)}, "other": {"default_temperature": 2.0}}
    bought = await among(provider("a", "m", "other"), cards=cards).bought(task("x"))
    document = json.loads(bought.body)
    assert (document["model"], document["temperature"], document["max_tokens"]) == ("m", 0.2, 300)


async def test_alias_defaults_and_adapter_go_together():
    cards = {"m": DEFAULTS | {"aliases": ("x",)}}
    wanted = task("x", COMPLETIONS, more=b', "echo":true, "logit_bias" : {}')
    (candidate,) = await among(provider("a", "m"), cards=cards).selector(order(wanted))
    bought = candidate.adapt(wanted)
    assert candidate.adapter == COMPLETIONS_AS_CHAT
    assert (bought.kind, bought.model) == (CHAT, "m")
    assert json.loads(bought.body) == {
        "model": "m",
        "messages": [{"role": "user", "content": "x"}],
        "logit_bias": {},
        "temperature": 0.2,
        "max_tokens": 300,
    }
    assert candidate.adapt(wanted) == bought, "it can be reproduced"


# -- completions ----------------------------------------------------------------------------------


async def test_the_adapter_is_for_providers_that_only_chat_and_the_others_get_every_byte():
    wanted = task(kind=COMPLETIONS)
    found = await among(provider("a", "m"), provider("b", "m", kind=COMPLETIONS)).selector(order(wanted))
    assert [(one.provider_id, one.adapter) for one in found] == [("b", ""), ("a", COMPLETIONS_AS_CHAT)]
    assert found[0].adapt(wanted) is wanted
    assert found[1].adapt(wanted).kind is CHAT


@pytest.mark.parametrize("model", ["m", "auto"])
async def test_features_that_chat_lacks_are_refused_before_any_quote(model):
    wanted = task(model, COMPLETIONS, more=b',"suffix":"end"')
    with pytest.raises(NotAdaptable) as caught:
        await among(provider("a", "m")).selector(order(wanted))
    assert caught.value.param == "suffix"


@pytest.mark.parametrize("model", ["m", "auto"])
async def test_a_provider_that_takes_completions_gets_what_no_chat_can_do(model):
    choosing = among(provider("a", "m"), provider("node:n", "m", kind=COMPLETIONS), provider("c", "m"))
    assert await choosing.ids(task(model, COMPLETIONS, more=b',"suffix":"end"')) == ["node:n"]


# -- auto -----------------------------------------------------------------------------------------


async def test_auto_gives_candidates_that_each_buy_their_own_model_and_say_why():
    choosing = among(provider("a", "m1"), provider("node:n", "m2", list_price_msat=0))
    choosing.measured("a", "m1", 1)
    choosing.measured("node:n", "m2", 30)
    wanted = task("auto", more=b', "metadata" : {"model":"auto"}')
    found = await choosing.selector(order(wanted))
    assert [one.provider_id for one in found] == ["a", "node:n"]
    for candidate, model in zip(found, ("m1", "m2"), strict=True):
        bought = candidate.adapt(wanted)
        assert bought.body == wanted.body.replace(b'"auto"', f'"{model}"'.encode(), 1)
        assert (bought.model, candidate.routing["model"]) == (model, model)
    first, second = (one.routing for one in found)
    assert (first["source"], first["peer"], "node" in first) == ("lcp", "a", False)
    assert (second["source"], second["node"], "peer" in second) == ("node", "n", False)
    assert first["candidates"] == second["candidates"] == 2
    assert first["reason"].startswith("best score of 2: fastest")
    assert second["reason"].startswith("score 2 of 2: cheapest")
    assert 0 < second["score"] < first["score"] <= 1


async def test_every_choice_is_reported_once_and_can_be_reproduced():
    choosing = among(*(provider(f"p{n}", "m", f"m{n}") for n in range(4)), draw=0.8)
    asked = order(task("auto:fast"))
    found = await choosing.selector(asked)
    ((told, decision),) = choosing.decisions
    assert told is asked
    assert replay(decision.as_log()) == (found[0].provider_id, found[0].routing["model"])


async def test_at_most_five_candidates_are_given():
    found = await among(*(provider(f"p{n}", "m") for n in range(9))).ids(task("auto"))
    assert len(found) == len(set(found)) == 5


async def test_a_provider_that_may_not_be_asked_is_no_candidate_of_auto_and_no_more_are_tried_than_needed():
    choosing = among(*(provider(f"p{n}", "m") for n in range(9)))
    choosing.rests("p0")
    assert "p0" not in await choosing.ids(task("auto"))
    assert len(choosing.asked) == 5


async def test_a_choice_that_no_provider_may_be_asked_for_is_reported_once_at_most():
    choosing = among(provider("a", "m"))
    choosing.rests("a")
    choosing.now = 11
    await choosing.ids(task("auto"))
    choosing.decisions.clear()
    with pytest.raises(NoProvider):
        await choosing.ids(task("auto"))
    assert len(choosing.decisions) <= 1


async def test_a_provider_on_trial_is_given_to_one_request_at_a_time():
    choosing = among(provider("a", "m"))
    choosing.rests("a")
    choosing.now = 11
    assert await choosing.ids(task("auto")) == ["a"]
    with pytest.raises(NoProvider, match="failed lately"):
        await choosing.ids(task("auto"))


@pytest.mark.parametrize("model", ["m", "auto"])
async def test_where_all_providers_rest_there_is_no_provider_now(model):
    choosing = among(provider("a", "m"))
    choosing.rests("a")
    with pytest.raises(NoProvider, match="failed lately"):
        await choosing.ids(task(model))


async def test_a_word_that_means_nothing_is_not_found_and_those_that_do_are_named():
    choosing = among(provider("a", "m"), cards={"m": {"capabilities": ("singing",)}})
    with pytest.raises(ModelNotFound, match="only these words are known: fast, cheap") as caught:
        await choosing.ids(task("auto:quickest"))
    assert "singing" in caught.value.message and "quickest" not in caught.value.message
    assert await choosing.ids(task("auto:singing")) == ["a"]


@pytest.mark.parametrize("kind", [CHAT, RESPONSES, COMPLETIONS])
@pytest.mark.parametrize("model", ["m", "auto"])
async def test_an_empty_catalog_has_no_provider(model, kind):
    with pytest.raises(NoProvider, match="no peers are connected"):
        await among().ids(task(model, kind))


async def test_auto_for_an_endpoint_that_no_provider_serves_is_not_found():
    with pytest.raises(ModelNotFound, match="can serve this request"):
        await among(provider("a", "m")).ids(task("auto", RESPONSES))


async def test_auto_keeps_to_the_operators_rules():
    both = provider("a", "m1", "m2"), provider("b", "m1")
    only = among(*both, rules={"allowlist": frozenset({"m2"})})
    assert [one.routing["model"] for one in await only.selector(order(task("auto")))] == ["m2"]
    mapped = among(*both, rules={"model_peers": {"m1": "b", "m2": "b"}})
    assert await mapped.ids(task("auto")) == ["b"]
    default = among(*both, provider("node:n", "m1"), rules={"default_peer_id": "b"})
    assert sorted(await default.ids(task("auto"))) == ["b", "node:n"]
    open_to_all = among(*both, rules={"allowlist": frozenset({"m2"}), "allow_unlisted": True})
    assert sorted(await open_to_all.ids(task("auto"))) == ["a", "a", "b"]


async def test_a_model_that_calls_itself_auto_is_never_bought_as_such():
    choosing = among(provider("a", "auto", "m"))
    assert (await choosing.bought(task("auto"))).model == "m"


async def test_a_request_with_tools_goes_to_a_provider_that_has_them_though_another_is_faster():
    cards = {"able": {"capabilities": ("tools",)}, "quick": {"capabilities": ()}}
    choosing = among(provider("a", "quick"), provider("b", "able"), cards=cards)
    choosing.measured("a", "quick", 0.1)
    choosing.measured("b", "able", 60)
    wanted = task("auto", more=b',"tools":[{"type":"function"}]')
    assert await choosing.ids(wanted) == ["b"]


async def test_a_longer_request_of_the_same_second_does_not_go_where_only_a_shorter_one_fits():
    cards = {"short": {"context_length": 5_000}, "long": {"context_length": 131_072}}
    choosing = among(provider("a", "short"), provider("b", "long"), cards=cards)
    assert sorted(await choosing.ids(task("auto", more=b',"max_tokens":4200'))) == ["a", "b"]
    assert await choosing.ids(task("auto", more=b',"max_tokens":8000')) == ["b"]


async def test_a_request_that_orjson_refuses_is_read_all_the_same():
    wanted = task("auto", more=b',"user":"cut \\ud83d"')
    assert (await among(provider("a", "m")).bought(wanted)).body.count(b"\\ud83d") == 1


# -- the catalog ----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["new", "auto"])
async def test_a_missing_model_is_looked_up_in_a_fresh_catalog(model):
    choosing = among(fresh=(provider("a", "new"),))
    assert await choosing.ids(task(model)) == ["a"]
    assert choosing.catalogs.refreshes == 1


@pytest.mark.parametrize("model", ["m", "auto"])
async def test_a_provider_that_is_found_at_once_costs_no_refresh(model):
    choosing = among(provider("a", "m"))
    await choosing.ids(task(model))
    assert choosing.catalogs.refreshes == 0


async def test_a_model_missing_from_a_fresh_catalog_too_is_not_found():
    choosing = among(provider("a", "m"), fresh=(provider("a", "other"),))
    with pytest.raises(ModelNotFound):
        await choosing.ids(task("unheard-of"))
    assert choosing.catalogs.refreshes == 1


async def test_a_request_that_cannot_be_adapted_is_no_reason_to_look_again():
    choosing = among(provider("a", "m"))
    with pytest.raises(NotAdaptable):
        await choosing.ids(task(kind=COMPLETIONS, more=b',"best_of":4'))
    assert choosing.catalogs.refreshes == 0


async def test_the_offers_are_read_once_for_each_catalog():
    choosing = among(provider("a", "m"), fresh=(provider("a", "m2"),))
    offers = choosing.selector.offers()
    assert choosing.selector.offers() is offers
    await choosing.ids(task("m2"))
    assert choosing.selector.offers() is not offers
    assert set(choosing.selector.offers().traits) == {"m2"}


# -- embeddings -----------------------------------------------------------------------------------


async def test_embeddings_go_to_a_provider_that_embeds_with_every_byte():
    wanted = task("bge-m3", EMBEDDINGS)
    choosing = among(provider("a", "m"), provider("node:e", "bge-m3", kind=EMBEDDINGS))
    (candidate,) = await choosing.selector(order(wanted))
    assert candidate.provider_id == "node:e" and candidate.adapt(wanted) is wanted


async def test_embeddings_without_a_provider_name_the_available_models():
    with pytest.raises(ModelNotFound, match=r"only other models: m$"):
        await among(provider("a", "m")).ids(task("bge-m3", EMBEDDINGS))
    with pytest.raises(ModelNotFound, match=r"the embedding models are: bge-m3$"):
        await among(provider("node:e", "bge-m3", kind=EMBEDDINGS)).ids(task("m", EMBEDDINGS))
    with pytest.raises(ModelNotFound, match="no provider is connected"):
        await among().ids(task("bge-m3", EMBEDDINGS))


def test_the_mode_of_answering_is_told_from_the_task():
    assert answer_mode(task()) is Mode.WHOLE
    assert answer_mode(task(stream=True)) is Mode.STREAM
    assert answer_mode(task(kind=EMBEDDINGS, stream=True)) is Mode.EMBEDDING


# -- a context that is too short, and dimensions ----------------------------------------------

PROSE = ("The quick brown fox jumps over the lazy dog and goes home. " * 500)[:24_000]


def chat_of(text, model="m", kind=CHAT):
    subject = {CHAT: "messages", RESPONSES: "input", COMPLETIONS: "prompt", EMBEDDINGS: "input"}
    inner = [{"role": "user", "content": text}] if kind is CHAT else text
    body = json.dumps({"model": model, subject[kind]: inner}).encode()
    return Task(kind, model, body, stream=False)


@each_case("kind", [CHAT, RESPONSES, COMPLETIONS, EMBEDDINGS])
@each_case("model", ["m", "alias", "auto"])
async def test_a_request_that_is_clearly_too_long_for_its_model_is_refused(kind, model):
    """Regression: a prompt of 24 KB was bought for a context of 4,096 tokens."""
    choosing = among(provider("a", "m", kind=kind), cards={"m": {"context_length": 4_096, "aliases": ("alias",)}})
    wanted = chat_of(PROSE, model, kind)
    with pytest.raises(ContextTooLong, match="4096 tokens") as caught:
        await choosing.selector(order(wanted))
    assert caught.value.param == {CHAT: "messages", COMPLETIONS: "prompt"}.get(kind, "input")
    with pytest.raises(ContextTooLong):
        choosing.explain(wanted)
    assert choosing.catalogs.refreshes == 0
    assert await choosing.ids(chat_of(PROSE[:12_000], model, kind)) == ["a"]


async def test_a_model_that_has_room_gets_what_another_has_none_for():
    cards = {"m": {"context_length": 4_096}, "long": {"context_length": 131_072}}
    choosing = among(provider("a", "m"), provider("b", "long"), cards=cards)
    assert await choosing.ids(chat_of(PROSE, "auto")) == ["b"]


@pytest.mark.parametrize(
    "text", ["=" * 15_000, "1234567890" * 1_200, "\u4e2d\u6587" * 2_500, "a" * 4_000, "{[(" * 3_000]
)
async def test_a_request_that_may_just_fit_is_not_refused(text):
    choosing = among(provider("a", "m"), cards={"m": {"context_length": 4_096}})
    assert await choosing.ids(chat_of(text)) == ["a"]


async def test_each_of_several_inputs_to_embed_has_the_context_for_itself():
    choosing = among(provider("a", "m", kind=EMBEDDINGS), cards={"m": {"context_length": 512, "type": "embedding"}})
    assert await choosing.ids(chat_of([PROSE[:1_000]] * 50, kind=EMBEDDINGS)) == ["a"]


async def test_the_dimensions_of_a_model_are_written_into_requests_that_do_not_say():
    choosing = among(provider("a", "m", kind=EMBEDDINGS), cards={"m": {"dimensions": 256, "type": "embedding"}})
    wanted = task("m", EMBEDDINGS)
    bought = await choosing.bought(wanted)
    assert bought.body == wanted.body.rstrip()[:-1] + b',"dimensions":256}' + b"\n"
    own = task("m", EMBEDDINGS, more=b', "dimensions":8')
    assert (await choosing.bought(own)).body == own.body
    chat = among(provider("a", "m"), cards={"m": {"dimensions": 256}})
    assert (await chat.bought(task())).body == task().body
