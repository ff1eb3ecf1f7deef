from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.routing.auto import AutoPolicy, NoMatch, replay
from lcp_gateway.routing.averages import RequestSize
from lcp_gateway.routing.catalog import PriceList
from lcp_gateway.routing.measurements import Mode
from lcp_gateway.routing.preferences import Weights, parse_preferences
from lcp_gateway.routing.requirements import Requirements
from tests.routing.offering import CHAT, Bench, provider

TOOLS = {"capabilities": ("tools",)}
NO_TOOLS = {"capabilities": ()}


def two(**more) -> Bench:
    return Bench(provider("a", "m"), provider("b", "m"), **more)


def choices(bench, count, **more) -> Counter:
    return Counter(bench.chosen(draw=number / count, **more) for number in range(count))


def test_equals_share_the_work():
    assert choices(two(), 100) == {"a": 50, "b": 50}


def test_the_faster_one_is_chosen():
    bench = two()
    for _ in range(3):
        bench.measured("a", "m", 10)
        bench.measured("b", "m", 1)
    assert choices(bench, 100)["b"] >= 98


def test_of_two_equals_the_one_made_ten_times_slower_gets_under_a_tenth_within_fifty():
    for seed in range(20):
        bench, seen = two(), Counter()
        for number in range(50):
            draw = ((seed * 50 + number) * 0.618034) % 1
            one = bench.chosen(draw=draw)
            seen[one] += 1
            bench.measured(one, "m", 10 if one == "a" else 1)
            bench.now += 1
        assert seen["a"] < 5, seen


def test_a_provider_that_becomes_slow_after_a_good_start_is_left_as_well():
    bench, seen = two(), Counter()
    for number in range(60):
        one = bench.chosen(draw=(number * 0.618034) % 1)
        bench.measured(one, "m", 1)
    for number in range(50):
        one = bench.chosen(draw=(number * 0.618034) % 1)
        seen[one] += 1
        bench.measured(one, "m", 10 if one == "a" else 1)
        bench.now += 1
    assert seen["a"] < 5, seen


def test_a_provider_that_was_slow_is_tried_again_later():
    bench = two()
    for _ in range(3):
        bench.measured("a", "m", 10)
        bench.measured("b", "m", 1)
    assert choices(bench, 100)["a"] <= 2
    bench.now += 3_600
    assert choices(bench, 100)["a"] > 20


def test_the_cheaper_one_is_chosen_and_cheap_insists():
    bench = two()
    for _ in range(3):
        bench.measured("a", "m", 1, price_msat=20_000)
        bench.measured("b", "m", 1.2, price_msat=2_000)
    plain, cheap = choices(bench, 200), choices(bench, 200, model="auto:cheap")
    assert plain["b"] > plain["a"] and cheap["b"] >= plain["b"]
    assert bench.chosen("auto:cheap") == "b"


def test_fast_insists_on_speed_where_price_says_otherwise():
    bench = two()
    for _ in range(3):
        bench.measured("a", "m", 1, price_msat=9_000)
        bench.measured("b", "m", 2.5, price_msat=1_000)
    assert choices(bench, 100, model="auto:fast")["a"] > 90
    assert choices(bench, 100, model="auto:cheap")["b"] > 90


def test_a_provider_that_does_not_deliver_is_left():
    bench = two()
    for _ in range(6):
        bench.records.failed("a")
    assert choices(bench, 100)["b"] > 90


def test_a_provider_that_has_much_to_do_gets_less():
    bench = Bench(provider("a", "m", max_inflight_jobs=4), provider("b", "m", max_inflight_jobs=4))
    for _ in range(3):
        bench.records.started("a")
    assert choices(bench, 100)["b"] > 80


def test_a_node_with_a_price_list_is_known_before_it_was_asked():
    bench = Bench(provider("node:free", "m", list_price_msat=0), provider("node:dear", "m", list_price_msat=50_000))
    assert choices(bench, 100)["node:free"] > 90
    assert choices(bench, 100, model="auto:free") == {"node:free": 100}


def test_no_provider_is_free_where_all_ask_a_price():
    with pytest.raises(NoMatch) as caught:
        two().decide("auto:free")
    assert not caught.value.offered


@given(st.floats(0, 1, exclude_max=True))
def test_tools_never_go_to_a_model_without_them_when_one_with_them_is_there(draw):
    bench = Bench(provider("a", "fast", "unsaid"), provider("b", "able"), cards={"able": TOOLS, "fast": NO_TOOLS})
    for _ in range(4):
        bench.measured("a", "fast", 0.1, price_msat=1)
        bench.measured("b", "able", 50, price_msat=90_000)
    decision = bench.decide(draw=draw, needs=("tools",))
    assert {one.entry.model for one in decision.ranked} == {"able"}
    assert "has tools" in decision.reason(decision.chosen)


def test_where_no_model_is_known_to_be_able_the_unknown_come_before_the_unable():
    bench = Bench(provider("a", "unable"), provider("b", "unsaid"), cards={"unable": NO_TOOLS})
    assert choices(bench, 50, needs=("vision",)) == {"b": 50}


def test_where_only_the_unable_are_there_they_are_asked():
    bench = Bench(provider("a", "unable"), cards={"unable": NO_TOOLS})
    assert bench.chosen(needs=("vision",)) == "a"


def test_a_capability_that_rests_does_not_block_the_request():
    bench = Bench(provider("a", "able"), provider("b", "unsaid"), cards={"able": TOOLS})
    bench.ready["a"] = 0.0
    assert bench.chosen(needs=("tools",)) == "b"


def test_a_context_that_is_too_short_is_avoided():
    cards = {"short": {"context_length": 4_096}, "long": {"context_length": 131_072}}
    bench = Bench(provider("a", "short"), provider("b", "long"), cards=cards)
    assert choices(bench, 50, tokens=20_000) == {"b": 50}
    assert set(choices(bench, 50, tokens=1_000)) == {"a", "b"}


def test_code_is_asked_of_models_that_can():
    bench = Bench(provider("a", "llama3.1:8b"), provider("b", "Qwen2.5-Coder-14B"))
    assert choices(bench, 50, model="auto:code") == {"b": 50}


def test_a_provider_that_is_known_to_do_more_of_it_comes_first():
    bench = Bench(provider("a", "llama3.1:8b"), provider("b", "Qwen2.5-Coder-14B"))
    assert choices(bench, 50, model="auto:code", needs=("tools",)) == {"b": 50}


def test_size_is_asked_for_by_name():
    bench = Bench(provider("a", "x-1b"), provider("b", "x-70b"))
    assert bench.chosen("auto:small") == "a"
    assert bench.chosen("auto:large") == "b"


def test_a_peer_that_rests_is_not_chosen_and_one_on_trial_seldom():
    bench = two()
    bench.ready["a"] = 0.0
    assert choices(bench, 50) == {"b": 50}
    bench.ready["a"] = 0.5
    bench.now += 2
    assert 0 < choices(bench, 200)["a"] < 60


def test_no_available_provider_differs_from_no_suitable_offer():
    bench = two()
    bench.ready.update(a=0.0, b=0.0)
    with pytest.raises(NoMatch) as caught:
        bench.decide()
    assert caught.value.offered
    with pytest.raises(NoMatch) as caught:
        bench.decide(kind=TaskKind.EMBEDDINGS)
    assert not caught.value.offered


def test_a_peer_that_goes_within_the_second_is_not_chosen_from_memory():
    bench = two()
    bench.chosen()
    bench.ready["a"] = 0.0
    assert choices(bench, 10) == {"b": 10}
    bench.ready["b"] = 0.0
    bench.ready["a"] = 1.0
    assert choices(bench, 10) == {"a": 10}


def test_where_the_whole_shortlist_is_unavailable_the_others_are_scored():
    """The shortlist is cached for up to a second, within which every provider on it may become unavailable."""
    bench = Bench(*(provider(f"good{n}", "m") for n in range(20)), provider("other", "m"))
    for number in range(20):
        bench.measured(f"good{number}", "m", 1)
        bench.records.quoted(f"good{number}", "m", 1_000)
    bench.measured("other", "m", 60)
    bench.records.quoted("other", "m", 90_000)
    listed = {one.entry.provider.peer_id for one in bench.decide().considered}
    assert "other" not in listed

    for number in range(20):
        bench.ready[f"good{number}"] = 0.0

    assert bench.chosen() == "other"


def test_the_others_are_asked_in_turn_one_of_each_provider_first():
    bench = Bench(provider("a", "m1", "m2"), provider("b", "m1"), provider("c", "m1"))
    for model in ("m1", "m2"):
        bench.measured("a", model, 1)
    for name in ("b", "c"):
        for _ in range(3):
            bench.measured(name, "m1", 3)
    ranked = [one.entry.provider.peer_id for one in bench.decide().ranked]
    assert ranked == ["a", "b", "c", "a"]


def test_embedding_models_are_not_asked_to_chat():
    bench = Bench(provider("a", "nomic-embed-text"), provider("b", "m"))
    assert choices(bench, 20) == {"b": 20}


def test_embeddings_are_asked_of_a_provider_that_embeds():
    bench = Bench(provider("a", "m"), provider("node:e", "bge-m3", kind=TaskKind.EMBEDDINGS))
    assert bench.chosen(kind=TaskKind.EMBEDDINGS, mode=Mode.EMBEDDING) == "node:e"


def test_a_completion_may_go_to_a_model_that_chats():
    assert two().chosen(kind=TaskKind.COMPLETIONS) == "a"


def test_the_operators_rules_hold_for_auto_too():
    both = (provider("a", "m1", "m2"), provider("b", "m1"))
    assert set(choices(Bench(*both, allowlist=frozenset({"m2"})), 20)) == {"a"}
    bench = Bench(*both, model_peers={"m1": "b", "m2": "b"})
    assert set(choices(bench, 20)) == {"b"}
    bench = Bench(*both, provider("node:n", "m1"), default_peer_id="b")
    assert set(choices(bench, 40)) == {"b", "node:n"}


@given(st.floats(0, 1, exclude_max=True), st.floats(0.01, 0.5))
def test_the_choice_can_be_made_again_from_the_log_line(draw, temperature):
    policy = AutoPolicy(Weights(1, 3, 2, 2, 1), temperature)
    bench = Bench(*(provider(f"p{n}", "m1", f"m{n}") for n in range(6)), policy=policy)
    for number in range(6):
        bench.measured(f"p{number}", "m1", 1 + number, price_msat=1_000 * (7 - number))
    decision = bench.decide("auto:fast", draw=draw)
    chosen = decision.chosen.entry
    assert replay(decision.as_log()) == (chosen.provider.peer_id, chosen.model)


def test_a_thousand_models_are_shortlisted_and_the_best_is_found():
    providers = [provider(f"p{n}", *(f"m{n}-{k}" for k in range(20))) for n in range(50)]
    bench = Bench(*providers)
    for _ in range(4):
        bench.measured("p7", "m7-3", 0.01)
        bench.measured("p8", "m8-3", 1)
    decision = bench.decide()
    assert decision.offered == 1_000 and len(decision.considered) <= 16
    assert (decision.chosen.entry.provider.peer_id, decision.chosen.entry.model) == ("p7", "m7-3")


def test_the_providers_of_a_named_model_are_put_in_order():
    bench = two()
    for _ in range(3):
        bench.measured("a", "m", 9)
        bench.measured("b", "m", 1)
    ordered = bench.auto.order(bench.offers.by_kind[CHAT], Mode.WHOLE, 0.0)
    assert [one.entry.provider.peer_id for one in ordered.ranked] == ["b", "a"]
    bench.ready["b"] = 0.0
    ordered = bench.auto.order(bench.offers.by_kind[CHAT], Mode.WHOLE, 0)
    assert [one.entry.provider.peer_id for one in ordered.ranked] == ["a"]
    bench.ready["a"] = 0.0
    assert bench.auto.order(bench.offers.by_kind[CHAT], Mode.WHOLE, 0) is None


# -- unknown prices, and prices by size ----------------------------------------


def test_a_reason_claims_nothing_that_is_not_known():
    bench = two()
    assert bench.decide().reason(bench.decide().chosen) == "best score of 2: not yet measured"
    for _ in range(3):
        bench.measured("a", "m", 1, price_msat=2_000)
        bench.measured("b", "m", 5, price_msat=1_000)
    decision = bench.decide("auto:fast")
    assert decision.reason(decision.chosen) == "best score of 2: fastest, delivers"
    other = next(one for one in decision.considered if one is not decision.chosen)
    assert decision.reason(other) == "score 2 of 2: cheapest, delivers"


@given(st.floats(0, 0.999999), st.integers(1, 100_000))
def test_beside_a_free_node_no_draw_chooses_a_peer_whose_price_is_known(draw, price_msat):
    bench = Bench(provider("a", "x-14b"), provider("b", "x-8b"), provider("node:n", "m", list_price_msat=0))
    for _ in range(3):
        bench.measured("node:n", "m", 3)
    bench.records.quoted("a", "x-14b", price_msat)
    bench.records.quoted("b", "x-8b", price_msat * 2)
    assert bench.chosen(draw=draw) == "node:n"


def test_where_the_price_of_the_chosen_one_is_not_known_the_best_that_is_known_comes_next():
    bench = Bench(
        provider("a", "m1-14b", "m2-14b"), provider("b", "m-14b"), provider("node:n", "m-1b", list_price_msat=0)
    )
    for draw in (0.99, 0.5):
        ranked = [one.entry.provider.peer_id for one in bench.decide(draw=draw).ranked]
        assert ranked[0] == "node:n" or ranked[1] == "node:n", ranked


def test_the_cheapest_is_weighed_however_many_score_better():
    peers = [provider(f"p{n}", "x-14b") for n in range(20)]
    bench = Bench(*peers, provider("node:n", "m-1b", list_price_msat=0))
    bench.ready["node:n"] = 0.5
    considered = {one.entry.provider.peer_id for one in bench.decide("auto:fast").considered}
    assert "node:n" in considered and len(considered) <= 13


def test_prices_are_compared_for_the_size_of_this_request():
    bench = two()
    small, large = RequestSize(100, 50), RequestSize(100, 8_000)
    for _ in range(3):
        bench.measured("a", "m", 1)
        bench.measured("b", "m", 1)
        bench.records.quoted("a", "m", 80_000, large)
        bench.records.quoted("b", "m", 1_500, small)
    # Per token b costs three times as much.
    for size in (small, large):
        assert bench.chosen("auto:cheap", size=size) == "a"


def test_a_nodes_price_list_is_read_for_the_size_of_the_request():
    by_output = PriceList(per_output_token=1.0, usual_output_tokens=4_096)
    bench = Bench(
        provider("node:a", "m", list_price_msat=500, price_list=by_output),
        provider("node:b", "m", list_price_msat=900, price_list=PriceList(per_request=900)),
    )
    assert bench.chosen("auto:cheap", size=RequestSize(10, 50)) == "node:a"
    assert bench.chosen("auto:cheap", size=RequestSize(10, 9_000)) == "node:b"
    assert bench.chosen("auto:cheap", size=RequestSize(10)) == "node:b"


# -- keys that are restricted to some models ------------------------------------------------------


def only(bench, *models, **more):
    offers, wish = bench.offers, parse_preferences("auto", bench.offers.capabilities)
    needs = Requirements(frozenset(), 0)
    return bench.auto.decide(
        offers, CHAT, Mode.WHOLE, wish, needs, more.get("draw", 0.0), only=frozenset(models)
    ).chosen.entry


@given(draw=st.floats(0, 1, exclude_max=True))
def test_of_a_key_that_is_restricted_to_some_models_only_those_are_chosen(draw):
    bench = Bench(provider("a", "m1", "m2"), provider("b", "m2", "m3"), provider("c", "m1"))
    assert only(bench, "m2", draw=draw).model == "m2"
    assert only(bench, "m2", "m3", draw=draw).model in {"m2", "m3"}


def test_one_keys_models_are_not_taken_for_anothers():
    bench = Bench(provider("a", "m1"), provider("b", "m2"))
    for _ in range(3):
        assert only(bench, "m1").model == "m1"
        assert only(bench, "m2").model == "m2"
    for _ in range(3):
        bench.measured("a", "m1", 10)
        bench.measured("b", "m2", 1)
    assert (only(bench).model, only(bench, "m1").model) == ("m2", "m1")


def test_where_no_provider_offers_a_keys_models_none_is_chosen():
    with pytest.raises(NoMatch):
        only(two(), "other")


@pytest.mark.parametrize("seen", [0, 1, 13, 40])
@pytest.mark.parametrize("wish", ["auto", "auto:small", "auto:large"])
@pytest.mark.parametrize("policy", [None, AutoPolicy(Weights(1.0, 0.0, 0.0, 0.0, 0.0))])
def test_leaving_providers_out_before_the_scoring_changes_no_choice(monkeypatch, policy, wish, seen):
    """Regression: thousands of models of one provider were scored, though at most twelve can be on the shortlist."""
    names = [f"model-{number}-{1 + number % 7}b" for number in range(60)]
    bench = Bench(provider("a", *names), provider("b", *names), provider("c", "model-0-1b"), policy=policy)
    for number in range(seen):
        bench.measured("ab"[number % 2], names[-1 - number], 0.1 + number)
    weighed = bench.decide(wish)
    monkeypatch.setattr(type(bench.auto), "_distinct", lambda _self, entries, _wish: entries)
    bench.now += 10
    assert shown(bench.decide(wish)) == shown(weighed)
    assert weighed.offered == 121


def shown(decision):
    return [(one.entry.provider.peer_id, one.entry.model) for one in decision.considered]
