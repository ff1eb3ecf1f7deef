import json

import pytest

from lcp_gateway.purchase.order import Task
from lcp_gateway.routing.auto import replay
from lcp_gateway.routing.measurements import Mode
from lcp_gateway.routing.preferences import Preferences
from lcp_gateway.routing.selection import explanation, named_explanation
from tests.routing.offering import CHAT, Bench, provider


def task(model):
    return Task(CHAT, model, b'{"secret":"prompt"}', stream=False)


def two() -> Bench:
    bench = Bench(provider("a", "m1"), provider("node:n", "m2", list_price_msat=2_000))
    for _ in range(3):
        bench.measured("a", "m1", 1, price_msat=1_000)
        bench.measured("node:n", "m2", 20)
    return bench


def named(bench, *, by_score=True):
    scored = bench.auto.rank(bench.offers.by_kind[CHAT], Mode.WHOLE, Preferences(), 9)
    return named_explanation(task("alias"), "m", scored, by_score=by_score)


def test_a_choice_of_auto_is_explained_with_all_candidates():
    bench = two()
    document = explanation(task("alias"), "auto:fast", bench.decide("auto:fast"))
    assert document["object"] == "lcp.route"
    assert document["endpoint"] == CHAT.value
    assert (document["model"], document["resolved_model"]) == ("alias", "auto:fast")
    first, second = document["candidates"]
    assert document["chosen"] == first
    assert (first["source"], first["provider"], first["model"]) == ("lcp", "a", "m1")
    assert (second["source"], second["provider"]) == ("node", "node:n")
    assert first["score"] > second["score"]
    assert "best score of 2" in first["reason"] and "score 2 of 2" in second["reason"]


def test_numbers_are_given_where_they_are_known():
    bench = two()
    first, second = explanation(task("auto"), "auto", bench.decide())["candidates"]
    assert (first["price_msat"], second["price_msat"]) == (1_000, 2_000)
    assert first["tokens_per_s"] == pytest.approx(100, rel=0.1)
    assert first["first_byte_s"] is None
    unknown = explanation(task("auto"), "auto", Bench(provider("x", "m")).decide())["chosen"]
    assert (unknown["price_msat"], unknown["tokens_per_s"]) == (None, None)


def test_another_than_the_best_may_be_drawn_and_is_reported():
    bench = Bench(provider("a", "m"), provider("b", "m"))
    document = explanation(task("auto"), "auto", bench.decide(draw=0.9))
    assert document["chosen"]["provider"] == "b"
    assert document["candidates"][1] == document["chosen"]


def test_the_choice_can_be_reproduced_from_its_explanation():
    document = explanation(task("auto"), "auto", two().decide(draw=0.3))
    line = json.loads(json.dumps(document))["decision"]
    assert replay(line) == (document["chosen"]["provider"], document["chosen"]["model"])


def test_nothing_of_the_body_is_reported():
    told = json.dumps(explanation(task("auto"), "auto", two().decide()))
    assert "secret" not in told and "prompt" not in told


@pytest.mark.parametrize(("by_score", "words"), [(True, "their score"), (False, "daemon's order")])
def test_of_a_named_model_the_order_is_reported(by_score, words):
    document = named(two(), by_score=by_score)
    assert (document["model"], document["resolved_model"]) == ("alias", "m")
    assert document["decision"] is None
    assert document["chosen"] == document["candidates"][0]
    assert all(words in one["reason"] for one in document["candidates"])
    json.dumps(document)


def test_a_named_model_without_a_provider_has_no_chosen_one():
    document = named(Bench())
    assert document["chosen"] is None and document["candidates"] == []
