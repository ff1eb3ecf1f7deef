from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.routing.catalog import Catalog, ModelFacts, merge_kinds
from lcp_gateway.routing.model_registry import ModelCard, ModelRegistry
from lcp_gateway.routing.offers import Offers
from tests.routing.offering import CHAT, provider

RESPONSES, COMPLETIONS, EMBEDDINGS = (TaskKind.RESPONSES, TaskKind.COMPLETIONS, TaskKind.EMBEDDINGS)


def offered(*providers, cards=None, **rules) -> Offers:
    registry = ModelRegistry({name: ModelCard(**said) for name, said in (cards or {}).items()})
    return Offers.of(Catalog(providers, 0.0), registry, **rules)


def pairs(offers, kind=CHAT):
    return [(entry.provider.peer_id, entry.model) for entry in offers.by_kind[kind]]


def of_kinds(peer_id, *offers):
    made = provider(peer_id)
    return type(made)(peer_id, "addr", 2, merge_kinds(offers), source=made.source)


def test_every_model_at_every_provider_is_an_entry_in_the_catalogs_order():
    offers = offered(provider("b", "m2", "m1"), provider("a", "m1"))
    assert pairs(offers) == [("b", "m2"), ("b", "m1"), ("a", "m1")]
    assert offers.kinds["m1"][0] is offers.kinds["m2"][0] is CHAT
    assert offers.by_kind[RESPONSES] == offers.by_kind[EMBEDDINGS] == ()


def test_entries_of_one_model_share_what_is_known_of_it():
    first, second = offered(provider("a", "m"), provider("b", "m")).by_kind[CHAT]
    assert first.traits is second.traits


def test_a_provider_that_chats_counts_for_completions_too_and_once():
    offers = offered(provider("a", "m"), of_kinds("b", (COMPLETIONS, "m"), (CHAT, "m"), (CHAT, "other")))
    assert pairs(offers, COMPLETIONS) == [("a", "m"), ("b", "m"), ("b", "other")]
    assert pairs(offers) == [("a", "m"), ("b", "m"), ("b", "other")]


def test_a_provider_that_only_completes_does_not_chat():
    offers = offered(provider("a", "m", kind=COMPLETIONS))
    assert pairs(offers) == [] and pairs(offers, COMPLETIONS) == [("a", "m")]


def test_a_mapped_model_counts_at_its_provider_only():
    both = provider("a", "m", "other"), provider("b", "m")
    assert pairs(offered(*both, model_peers={"m": "b"})) == [("a", "other"), ("b", "m")]
    assert pairs(offered(*both, model_peers={"m": "gone"})) == [("a", "other")]


def test_a_default_peer_stands_in_for_the_other_peers_and_not_for_nodes():
    three = provider("a", "m"), provider("b", "m"), provider("node:n", "m")
    assert pairs(offered(*three, default_peer_id="b")) == [("b", "m"), ("node:n", "m")]
    mapped = offered(*three, default_peer_id="b", model_peers={"m": "a"})
    assert pairs(mapped) == [("a", "m")]


def test_an_allowlist_leaves_only_its_models():
    offers = offered(provider("a", "m1", "m2"), allowlist=frozenset({"m2", "gone"}))
    assert pairs(offers) == [("a", "m2")]
    assert set(offers.kinds) == {"m2"}


def test_a_model_that_calls_itself_auto_is_no_offer():
    assert pairs(offered(provider("a", "auto", "auto:fast", "m"))) == [("a", "m")]


def test_what_providers_say_of_a_model_is_put_together():
    facts = {"m": ModelFacts(8_192, 0, frozenset({"tools"}))}
    other = {"m": ModelFacts(4_096, 0, frozenset({"vision"}))}
    offers = offered(provider("node:n", "m", facts=facts), provider("node:o", "m", facts=other), provider("a", "plain"))
    assert offers.traits["m"].context_length == 4_096
    assert offers.traits["m"].capabilities == {"tools", "vision"}
    assert offers.capabilities == {"tools", "vision"}


def test_the_operators_word_counts_for_more():
    offers = offered(
        provider("node:n", "m", facts={"m": ModelFacts(8_192, 0, frozenset({"tools"}))}),
        cards={"m": {"context_length": 100, "capabilities": ("singing",)}},
    )
    assert offers.traits["m"].context_length == 100
    assert offers.capabilities == {"singing"}


def test_without_providers_there_are_no_offers():
    offers = offered()
    assert all(entries == () for entries in offers.by_kind.values())
    assert set(offers.by_kind) == set(TaskKind) and not offers.kinds
    assert offers.capabilities == frozenset()
