"""The models of peers that list none."""

from dataclasses import replace

from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.routing.catalog import Catalog, Provider, merge_kinds
from lcp_gateway.routing.peer_models import EVERY_PEER, PeerModels

CHAT, RESPONSES = TaskKind.CHAT_COMPLETIONS, TaskKind.RESPONSES
ALICE, BOB = ("02" + c * 64 for c in "ab")
BOTH = frozenset({CHAT, RESPONSES})


def peer(peer_id=ALICE, kinds=BOTH):
    return Provider(peer_id, "127.0.0.1:9735", 3, merge_kinds(()), open_kinds=kinds)


def offered(models, provider):
    completed = models.complete(provider)
    return {kind: list(names) for kind, names in completed.models.items()}, completed.open_kinds


def test_a_provider_that_lists_its_models_is_left_as_it_is():
    models = PeerModels({EVERY_PEER: ("m",)}, {"m": ALICE})
    models.bought(ALICE, CHAT, "m")
    listing = replace(peer(kinds=frozenset()), models=merge_kinds([(CHAT, "own")]))
    assert models.complete(listing) is listing


def test_a_peer_of_which_nothing_is_known_offers_nothing_and_is_open():
    assert offered(PeerModels(), peer()) == ({}, BOTH)


def test_the_operators_list_is_all_that_a_peer_offers():
    models = PeerModels({ALICE: ("a", "b"), EVERY_PEER: ("c",)}, {"mapped": ALICE, "other": BOB})
    models.bought(ALICE, CHAT, "bought")
    models.named(ALICE, ["named"])
    assert offered(models, peer()) == ({CHAT: ["a", "b", "mapped"], RESPONSES: ["a", "b", "mapped"]}, frozenset())
    assert offered(models, peer(BOB, frozenset({CHAT}))) == ({CHAT: ["c", "other"]}, frozenset())
    models.use({}, {})
    assert offered(models, peer()) == ({CHAT: ["bought", "named"], RESPONSES: ["named"]}, BOTH)


def test_an_empty_list_of_the_operator_is_a_list():
    assert offered(PeerModels({ALICE: ()}), peer()) == ({}, frozenset())


def test_what_was_bought_is_offered_for_its_kind_and_what_a_peer_named_for_all():
    models = PeerModels(mapped={"mapped": ALICE})
    models.bought(ALICE, CHAT, "bought")
    models.bought(BOB, CHAT, "elsewhere")
    models.named(ALICE, ["b", "a", "b"])
    assert offered(models, peer()) == ({CHAT: ["a", "b", "bought", "mapped"], RESPONSES: ["a", "b", "mapped"]}, BOTH)
    models.named(ALICE, ["c"])
    assert offered(models, peer(kinds=frozenset({RESPONSES})))[0] == {RESPONSES: ["c", "mapped"]}


def test_a_catalog_stays_the_same_while_nothing_is_learned():
    models = PeerModels()
    models.bought(ALICE, CHAT, "one")
    models.bought(ALICE, CHAT, "two")
    first = models.complete(peer())
    models.bought(ALICE, CHAT, "one")
    assert models.complete(peer()) == first
    assert Catalog((first,), 0.0).offering(CHAT, "two") == (first,)


def test_what_is_remembered_is_bounded():
    models = PeerModels()
    models.named(ALICE, ["x" * 257, "bad\n", "", *(f"m{n}" for n in range(500))])
    assert len(offered(models, peer())[0][CHAT]) == 64
    for number in range(1_000):
        models.bought(ALICE, CHAT, f"b{number}")
    models.bought(ALICE, CHAT, "y" * 257)
    assert len(offered(models, peer())[0][CHAT]) == 64 + 256
    for number in range(3_000):
        models.bought(f"peer-{number}", CHAT, "m")
    assert len(models._known) == 1_024
