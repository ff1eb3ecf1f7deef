"""Who suits a question at all: before anything is scored."""

from collections.abc import Callable
from typing import NamedTuple

from lcp_gateway.purchase.task import TaskKind
from lcp_gateway.routing.model_names import EMBEDDING
from lcp_gateway.routing.needs import Needs
from lcp_gateway.routing.offers import Entry, Offers
from lcp_gateway.routing.policy import Wish
from lcp_gateway.routing.records import Mode

Availability = Callable[[str], float]
"""Tells of a provider's id whether it may be asked now: 0 no, 1 yes, between them when it is on trial."""

_UNFIT = 1_000
# Sizes are told apart in steps of three per cent at most, or every request would have a list of its own.
_STEPS = 5


class Question(NamedTuple):
    """What a request asks of a choice, in so far as it decides who suits. Equal questions have the same answer.

    ``tokens`` is rounded up. ``native`` is set where only a provider of the very endpoint will do,
    ``only`` names the models that come into question, all where it is empty.
    """

    kind: TaskKind
    mode: Mode
    wish: Wish
    wanted: frozenset[str]
    tokens: int
    native: bool = False
    only: frozenset[str] = frozenset()


def question_of(
    kind: TaskKind,
    mode: Mode,
    wish: Wish,
    needs: Needs,
    *,
    native: bool = False,
    only: frozenset[str] = frozenset(),
) -> Question:
    """Give the question that a request amounts to."""
    step = 1 << max(0, needs.tokens.bit_length() - _STEPS)
    tokens = -(-needs.tokens // step) * step
    return Question(kind, mode, wish, needs.capabilities | wish.capabilities, tokens, native, only)


def suiting(
    offers: Offers, question: Question, availability: Availability
) -> tuple[list[Entry], bool]:
    """Give the entries that suit best and may be asked now, and whether any would if all might be asked.

    Those that can do everything that is wanted come alone; where there are none, those of which the least is unknown.
    """
    suits: dict[str, int] = {}
    there: dict[str, float] = {}
    least, found, anybody = _UNFIT, [], False
    for entry in offers.by_kind[question.kind]:
        if not _comes_into_question(entry, question):
            continue
        anybody = True
        provider_id = entry.provider.peer_id
        if provider_id not in there:
            there[provider_id] = availability(provider_id)
        if not there[provider_id]:
            continue
        unsure = suits.get(entry.model)
        if unsure is None:
            unsure = suits[entry.model] = _unsure(entry, question)
        if unsure < least:
            least, found = unsure, [entry]
        elif unsure == least:
            found.append(entry)
    return found, anybody


def _comes_into_question(entry: Entry, question: Question) -> bool:
    kind = question.kind
    if question.only and entry.model not in question.only:
        return False
    if question.wish.only_free and entry.provider.list_price_msat != 0:
        return False
    if question.native and not entry.provider.offers(kind, entry.model):
        return False
    return kind is TaskKind.EMBEDDINGS or entry.traits.type != EMBEDDING


def _unsure(entry: Entry, question: Question) -> int:
    """Count what is wanted of a model and nobody knows of it; a thousand where it is known not to do it."""
    traits = entry.traits
    if question.tokens and traits.context_length and question.tokens > traits.context_length:
        return _UNFIT
    unknown = 0
    for capability in question.wanted:
        can = traits.has(capability)
        if can is None:
            unknown += 1
        elif not can:
            return _UNFIT
    return unknown
