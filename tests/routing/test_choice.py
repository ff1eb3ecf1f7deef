import pytest

from lcp_gateway.purchase.task import Task, TaskKind
from lcp_gateway.routing.catalog import Catalog, Provider, empty, merge_kinds
from lcp_gateway.routing.choice import ModelNotFound, NoProvider, RoutingRules, candidates

CHAT, RESPONSES = TaskKind.CHAT_COMPLETIONS, TaskKind.RESPONSES
ALICE, BOB, CAROL = ("02" + c * 64 for c in "abc")


def provider(peer_id, *offers):
    return Provider(peer_id, "127.0.0.1:9735", 2, merge_kinds(offers))


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
    return candidates(catalog, task, RoutingRules(**rules))[0].peer_id


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


def test_where_nobody_advertises_anything_the_first_peer_gets_the_task():
    assert chosen("whatever", catalog=SILENT) == CAROL


def test_a_model_that_nobody_advertises_is_not_found():
    with pytest.raises(ModelNotFound):
        chosen("unheard-of")


def test_a_model_is_looked_for_under_the_kind_of_the_task():
    with pytest.raises(ModelNotFound):
        chosen("big", kind=RESPONSES)


def test_unlisted_models_may_be_allowed():
    assert chosen("unheard-of", allow_unlisted=True) == ALICE


def test_an_allowlist_replaces_what_is_advertised():
    assert chosen("mine", allowlist=frozenset({"mine"})) == ALICE
    with pytest.raises(ModelNotFound, match="allowlist"):
        chosen("small", allowlist=frozenset({"mine"}))


def test_without_peers_there_is_no_provider():
    with pytest.raises(NoProvider, match="no peers"):
        chosen("small", catalog=empty(0.0))


def test_every_model_is_listed_once_with_all_who_offer_it():
    models = CATALOG.models()
    assert {m: [p.peer_id for p in ps] for m, ps in models.items()} == {
        "small": [ALICE, BOB],
        "big": [BOB],
    }


def test_all_who_advertise_the_model_may_be_asked_in_turn():
    task = Task(CHAT, "small", b"{}", stream=False)
    found = candidates(CATALOG, task, RoutingRules())
    assert [provider.peer_id for provider in found] == [ALICE, BOB]


def test_a_peer_that_is_to_be_left_alone_is_not_asked():
    task = Task(CHAT, "small", b"{}", stream=False)
    found = candidates(CATALOG, task, RoutingRules(), lambda peer_id: peer_id != ALICE)
    assert [provider.peer_id for provider in found] == [BOB]
    with pytest.raises(NoProvider, match="failed lately"):
        candidates(CATALOG, task, RoutingRules(), lambda _: False)


def test_a_peer_that_the_operator_named_is_asked_whatever_it_did():
    task = Task(CHAT, "small", b"{}", stream=False)
    rules = RoutingRules(default_peer_id=BOB)
    assert candidates(CATALOG, task, rules, lambda _: False)[0].peer_id == BOB
