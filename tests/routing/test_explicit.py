from dataclasses import replace

import pytest

from lcp_gateway.purchase.order import Task, TaskKind
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.routing.catalog import Catalog, Provider, merge_kinds
from lcp_gateway.routing.explicit import ModelNotFound, NoProvider, RoutingRules, explicit_providers, kinds_of

CHAT, RESPONSES = TaskKind.CHAT_COMPLETIONS, TaskKind.RESPONSES
COMPLETIONS, EMBEDDINGS = TaskKind.COMPLETIONS, TaskKind.EMBEDDINGS
ALICE, BOB, CAROL = ("02" + c * 64 for c in "abc")


def provider(peer_id, *offers):
    source = ProviderSource.NODE if peer_id.startswith("node:") else ProviderSource.LCP
    return Provider(peer_id, "127.0.0.1:9735", 2, merge_kinds(offers), source=source)


CATALOG = Catalog(
    (
        provider(ALICE, (CHAT, "small"), (RESPONSES, "small")),
        provider(BOB, (CHAT, "big"), (CHAT, "small")),
        provider(CAROL),
    ),
    taken_at=0.0,
)
SILENT = Catalog((provider(CAROL), provider(ALICE)), taken_at=0.0)


def chosen(model, *, catalog=CATALOG, kind=CHAT, **rules):
    task = Task(kind, model, b"{}", stream=False)
    return explicit_providers(catalog, task, RoutingRules(**rules))[0].peer_id


def test_a_mapped_peer_comes_before_everything():
    assert chosen("small", model_peers={"small": CAROL}, default_peer_id=BOB) == CAROL


def test_a_mapped_peer_that_is_not_ready_is_an_error_even_if_another_has_the_model():
    with pytest.raises(NoProvider, match="mapped"):
        chosen("small", model_peers={"small": "02" + "d" * 64})


def test_the_default_peer_comes_before_one_that_advertises_the_model():
    assert chosen("small", default_peer_id=CAROL) == CAROL


def test_a_default_peer_that_is_not_ready_is_an_error():
    with pytest.raises(NoProvider, match="default"):
        chosen("small", default_peer_id="02" + "d" * 64)


def test_the_first_peer_that_advertises_the_model_gets_the_task():
    assert chosen("small") == ALICE
    assert chosen("big") == BOB


def test_where_no_provider_advertises_anything_the_first_peer_gets_the_task():
    assert chosen("whatever", catalog=SILENT) == CAROL


def test_a_model_that_no_provider_advertises_is_not_found():
    with pytest.raises(ModelNotFound):
        chosen("unheard-of")


def test_a_model_is_looked_for_under_the_kind_of_the_task():
    with pytest.raises(ModelNotFound):
        chosen("big", kind=RESPONSES)


def test_unlisted_models_may_be_allowed():
    assert chosen("unheard-of", allow_unlisted=True) == ALICE


def test_an_allowlist_replaces_the_advertised_models():
    assert chosen("mine", allowlist=frozenset({"mine"})) == ALICE
    with pytest.raises(ModelNotFound, match="allowlist"):
        chosen("small", allowlist=frozenset({"mine"}))


def test_without_peers_there_is_no_provider():
    with pytest.raises(NoProvider, match="no peers"):
        chosen("small", catalog=Catalog((), 0.0))


def test_every_model_is_listed_once_with_all_providers_that_offer_it():
    models = CATALOG.models()
    assert {m: [p.peer_id for p in ps] for m, ps in models.items()} == {"small": [ALICE, BOB], "big": [BOB]}


def test_all_providers_that_advertise_the_model_may_be_asked_in_turn():
    task = Task(CHAT, "small", b"{}", stream=False)
    found = explicit_providers(CATALOG, task, RoutingRules())
    assert [provider.peer_id for provider in found] == [ALICE, BOB]


def test_a_peer_that_is_to_be_left_alone_is_not_asked():
    task = Task(CHAT, "small", b"{}", stream=False)
    found = explicit_providers(CATALOG, task, RoutingRules(), lambda peer_id: peer_id != ALICE)
    assert [provider.peer_id for provider in found] == [BOB]
    with pytest.raises(NoProvider, match="failed lately"):
        explicit_providers(CATALOG, task, RoutingRules(), lambda _: False)


def test_a_peer_that_the_operator_named_is_asked_despite_its_failures():
    task = Task(CHAT, "small", b"{}", stream=False)
    rules = RoutingRules(default_peer_id=BOB)
    assert explicit_providers(CATALOG, task, rules, lambda _: False)[0].peer_id == BOB


# -- nodes ----------------------------------------------------------------------------------------


MIXED = Catalog(
    (
        provider(ALICE, (CHAT, "small")),
        provider(BOB, (CHAT, "big")),
        provider("node:n", (CHAT, "small"), (CHAT, "mine"), (COMPLETIONS, "small")),
        provider("node:e", (EMBEDDINGS, "bge-m3")),
    ),
    taken_at=0.0,
)
NODES_ALONE = Catalog((provider("node:n", (CHAT, "mine")),), taken_at=0.0)
NOBODY_SAYS = Catalog((provider("node:n"), provider(ALICE)), taken_at=0.0)


def all_of(model, kind=CHAT, *, catalog=MIXED, asked_as="", **rules):
    task = Task(kind, model, b"{}", stream=False)
    found = explicit_providers(catalog, task, RoutingRules(**rules), asked_as=asked_as)
    return [one.peer_id for one in found]


def test_a_node_that_offers_the_model_is_asked_like_a_peer():
    assert all_of("small") == [ALICE, "node:n"]
    assert all_of("mine") == ["node:n"]


def test_a_model_may_be_mapped_to_a_node():
    assert all_of("small", model_peers={"small": "node:n"}) == ["node:n"]
    with pytest.raises(NoProvider, match="mapped"):
        all_of("small", model_peers={"small": "node:gone"})


def test_a_default_peer_gets_what_no_node_offers():
    assert all_of("big", default_peer_id=ALICE) == [ALICE]
    assert all_of("unheard-of", default_peer_id=ALICE, allow_unlisted=True) == [ALICE]


def test_what_a_node_offers_stays_there_unless_the_default_peer_has_it_too():
    assert all_of("mine", default_peer_id=ALICE) == ["node:n"]
    assert all_of("small", default_peer_id=ALICE) == [ALICE]


def test_beside_a_default_peer_no_other_peer_is_asked_though_a_node_offers_the_model_too():
    assert ALICE not in all_of("small", default_peer_id=BOB)


def test_a_node_may_be_the_default():
    assert all_of("small", default_peer_id="node:n") == ["node:n"]
    assert all_of("big", default_peer_id="node:n") == ["node:n"]


def test_a_default_peer_that_is_away_keeps_no_provider_from_a_nodes_model():
    assert all_of("mine", default_peer_id="02" + "d" * 64) == ["node:n"]


def test_what_no_provider_advertises_is_never_tried_at_a_node():
    assert all_of("whatever", catalog=NOBODY_SAYS, allow_unlisted=True) == [ALICE]
    with pytest.raises(NoProvider):
        all_of("whatever", catalog=NODES_ALONE, allow_unlisted=True)


def test_a_model_may_be_on_the_allowlist_by_the_alias_it_was_asked_as():
    rules = {"allowlist": frozenset({"nick"})}
    assert all_of("mine", asked_as="nick", **rules) == ["node:n"]
    with pytest.raises(ModelNotFound, match="allowlist"):
        all_of("mine", asked_as="mine", **rules)


# -- completions ----------------------------------------------------------------------------------


def test_only_completions_can_be_done_as_something_else():
    assert kinds_of(COMPLETIONS) == (COMPLETIONS, CHAT)
    assert all(kinds_of(kind) == (kind,) for kind in TaskKind if kind is not COMPLETIONS)


def test_providers_of_completions_come_before_those_that_only_chat_and_each_once():
    assert all_of("small", COMPLETIONS) == ["node:n", ALICE]
    assert all_of("big", COMPLETIONS) == [BOB]


def test_a_provider_that_only_completes_gets_no_chat():
    catalog = Catalog((provider("node:n", (COMPLETIONS, "m"), (CHAT, "other")),), taken_at=0.0)
    with pytest.raises(ModelNotFound):
        all_of("m", catalog=catalog)


def test_a_peer_that_advertises_nothing_may_be_tried_with_a_completion():
    assert all_of("whatever", COMPLETIONS, catalog=SILENT) == [CAROL]


def test_where_others_chat_an_unknown_model_is_not_found_for_completions_either():
    with pytest.raises(ModelNotFound, match="auto"):
        all_of("unheard-of", COMPLETIONS)


# -- embeddings -----------------------------------------------------------------------------------


def test_embeddings_go_to_a_provider_that_embeds():
    assert all_of("bge-m3", EMBEDDINGS) == ["node:e"]
    assert all_of("bge-m3", EMBEDDINGS, default_peer_id=ALICE) == ["node:e"]


@pytest.mark.parametrize("rules", [{}, {"allow_unlisted": True}, {"default_peer_id": ALICE}])
def test_no_peer_is_tried_with_embeddings_that_no_provider_makes(rules):
    with pytest.raises(ModelNotFound, match="the embedding models are: bge-m3") as caught:
        all_of("small", EMBEDDINGS, **rules)
    assert "small" not in caught.value.message


def test_where_no_provider_embeds_the_other_models_are_named():
    with pytest.raises(ModelNotFound, match="only other models: big, small"):
        all_of("x", EMBEDDINGS, catalog=CATALOG)
    with pytest.raises(ModelNotFound, match="no provider is connected"):
        all_of("x", EMBEDDINGS, catalog=Catalog((), 0.0))


def test_not_all_of_many_models_are_named():
    catalog = Catalog((provider(ALICE, *((CHAT, f"m{n:02}") for n in range(13))),), taken_at=0.0)
    with pytest.raises(ModelNotFound, match=r"m00, .*m09 and 3 more"):
        all_of("x", EMBEDDINGS, catalog=catalog)


def _open(peer_id, *kinds):
    return replace(provider(peer_id), open_kinds=frozenset(kinds))


OPEN = Catalog(
    (_open(ALICE, RESPONSES), _open(BOB, CHAT, RESPONSES), provider(CAROL), _open("02" + "d" * 64, CHAT)), 0.0
)


def test_where_peers_list_no_models_those_that_take_the_kind_of_task_are_asked():
    task = Task(CHAT, "whatever", b"{}", stream=False)
    assert [one.peer_id for one in explicit_providers(OPEN, task, RoutingRules())] == [BOB, "02" + "d" * 64]
    assert chosen("whatever", catalog=OPEN, kind=RESPONSES) == ALICE
    assert chosen("whatever", catalog=OPEN, kind=COMPLETIONS) == BOB, "as a chat"
    assert chosen("whatever", catalog=OPEN, default_peer_id=CAROL) == CAROL
    assert chosen("whatever", catalog=OPEN, model_peers={"whatever": CAROL}) == CAROL
    assert chosen("whatever", catalog=OPEN, allowlist=frozenset({"whatever"})) == BOB
    with pytest.raises(ModelNotFound):
        chosen("whatever", catalog=OPEN, allowlist=frozenset({"other"}))
    with pytest.raises(NoProvider, match="failed lately"):
        explicit_providers(OPEN, task, RoutingRules(), lambda _peer_id: False)


def test_a_peer_that_is_known_to_have_the_model_comes_before_those_that_may():
    catalog = Catalog((*OPEN.providers, replace(provider(CAROL, (CHAT, "known")), open_kinds=frozenset({CHAT}))), 0.0)
    task = Task(CHAT, "known", b"{}", stream=False)
    assert [one.peer_id for one in explicit_providers(catalog, task, RoutingRules())] == [CAROL]
    assert chosen("unknown", catalog=catalog) == BOB, "it need not be unknown to all of them"
