"""The choice that ``auto`` stands for: every model at every provider scored, one chosen, the others in reserve."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple

from lcp_gateway.purchase.task import TaskKind
from lcp_gateway.routing.catalog import Provider
from lcp_gateway.routing.needs import Needs
from lcp_gateway.routing.offers import Entry, Offers
from lcp_gateway.routing.policy import Weights, Wish
from lcp_gateway.routing.records import Mode, Records, View
from lcp_gateway.routing.score import (
    Features,
    fit_feature,
    load_feature,
    pick,
    price_feature,
    speed_feature,
)
from lcp_gateway.routing.suiting import Availability, Question, question_of, suiting

# So many are weighed anew for every request; the others only when the list is made, once in a while.
_SHORTLISTED = 12
_SHORTLIST_S = 1.0
_MAX_SHORTLISTS = 64
_ON_TRIAL = 0.5
# As many as the log line shows of a feature, so that the choice can be made again from it.
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class AutoPolicy:
    """The operator's weights, and how far the choice strays from the best."""

    weights: Weights = field(default_factory=Weights)
    temperature: float = 0.05


class Scored(NamedTuple):
    """An entry with its score and what it is made of."""

    entry: Entry
    score: float
    features: Features
    view: View


@dataclass(frozen=True, slots=True)
class Decision:
    """What was chosen and of what. ``ranked`` is the order in which to ask; its first is the chosen one.

    ``considered`` are those that were weighed, the best score first, ``offered`` says of how many. With the weights, the
    temperature and ``draw`` the choice can be made again: ``considered[pick(scores, temperature, draw)]``.
    """

    ranked: tuple[Scored, ...]
    considered: tuple[Scored, ...]
    offered: int
    wish: Wish
    needs: Needs
    weights: Weights
    temperature: float
    draw: float

    @property
    def chosen(self) -> Scored:
        """The first to ask."""
        return self.ranked[0]

    def reason(self, scored: Scored) -> str:
        """Say in words why one of the ranked is asked."""
        features = scored.features
        strong = [
            word
            for word, value in (
                ("fastest", features.speed),
                ("cheapest", features.price),
                ("delivers", features.delivery),
            )
            if value > 0.95  # noqa: PLR2004 - as good as the best
        ]
        if wanted := sorted(self.needs.capabilities | self.wish.capabilities):
            can = [word for word in wanted if scored.entry.traits.has(word)]
            strong += [f"has {word}" for word in can]
        place = 1 + next(at for at, one in enumerate(self.considered) if one is scored)
        rank = "best score" if place == 1 else f"score {place}"
        return f"{rank} of {self.offered}" + (f": {', '.join(strong)}" if strong else "")

    def as_log(self) -> Mapping[str, object]:
        """Give everything that the choice depended on, in plain values and with all their digits.

        Each of ``considered`` is its features in the order of the weights, the provider's id and the model's name.
        """
        return {
            "words": list(self.wish.words),
            "needs": sorted(self.needs.capabilities | self.wish.capabilities),
            "tokens": self.needs.tokens,
            "weights": " ".join(map(repr, astuple(self.weights))),
            "temperature": repr(self.temperature),
            "draw": repr(self.draw),
            "offered": self.offered,
            "considered": [
                f"{' '.join(map(repr, one.features))} {one.entry.provider.peer_id} {one.entry.model}"
                for one in self.considered
            ],
        }


@dataclass(slots=True)
class _Shortlist:
    entries: tuple[Entry, ...]
    offered: int
    made_at: float
    anybody: bool


class Nobody(Exception):
    """Nobody does it now; ``offered`` tells whether somebody would who may not be asked at present."""

    def __init__(self, *, offered: bool) -> None:
        super().__init__("nobody")
        self.offered = offered


class AutoChoice:
    """Decides. No I/O, one thread; ``clock`` is a monotonic clock in seconds.

    Of many entries the best are found once a second, and those are weighed for every request with what is known then.
    """

    def __init__(
        self,
        policy: AutoPolicy,
        records: Records,
        availability: Availability,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._policy = policy
        self._records = records
        self._availability = availability
        self._clock = clock
        self._offers: Offers | None = None
        self._shortlists: OrderedDict[Question, _Shortlist] = OrderedDict()
        self._weights: dict[Wish, Weights] = {}

    def decide(
        self,
        offers: Offers,
        kind: TaskKind,
        mode: Mode,
        wish: Wish,
        needs: Needs,
        draw: float,
        *,
        native: bool = False,
        only: frozenset[str] = frozenset(),
    ) -> Decision:
        """Choose for one request; ``draw`` is uniform in [0, 1), ``native`` leaves adapters out, ``only`` other models.

        Raises:
            Nobody: nothing suits or nobody is there.
        """
        if offers is not self._offers:
            self._offers = offers
            self._shortlists.clear()
        question = question_of(kind, mode, wish, needs, native=native, only=only)
        found = self._shortlists.get(question)
        if found is None or self._clock() - found.made_at > _SHORTLIST_S:
            found = self._shortlist(offers, question)
        weights = self._weights_of(wish)
        considered = self._weigh(found.entries, mode, wish, weights)
        if not considered:
            # Everybody on the list has gone within the last second.
            found = self._shortlist(offers, question)
            considered = self._weigh(found.entries, mode, wish, weights)
        if not considered:
            raise Nobody(offered=found.anybody)
        return self._decision(considered, found.offered, wish, needs, weights, draw)

    def order(self, entries: Sequence[Entry], mode: Mode, draw: float) -> Sequence[Entry]:
        """Put the providers of one model that the client named in the order in which to ask them."""
        wish = Wish()
        weights = self._weights_of(wish)
        considered = self._weigh(entries, mode, wish, weights)
        if len(considered) < 2:  # noqa: PLR2004 - nothing to choose
            return [one.entry for one in considered]
        decision = self._decision(considered, len(considered), wish, Needs(), weights, draw)
        return [one.entry for one in decision.ranked]

    def rank(self, entries: Sequence[Entry], mode: Mode, wish: Wish, most: int) -> Sequence[Scored]:
        """Score entries, the best first, those that are left alone now too; for those who only look."""
        weights = self._weights_of(wish)
        return self._weigh(entries, mode, wish, weights, resting_too=True)[:most]

    def _weights_of(self, wish: Wish) -> Weights:
        weights = self._weights.get(wish)
        if weights is None:
            if len(self._weights) >= _MAX_SHORTLISTS:
                self._weights.clear()
            weights = self._weights[wish] = wish.weights(self._policy.weights)
        return weights

    def _decision(
        self,
        considered: Sequence[Scored],
        offered: int,
        wish: Wish,
        needs: Needs,
        weights: Weights,
        draw: float,
    ) -> Decision:
        temperature = self._policy.temperature
        chosen = pick([one.score for one in considered], temperature, draw)
        return Decision(
            _in_turn(considered, chosen),
            tuple(considered),
            offered,
            wish,
            needs,
            weights,
            temperature,
            draw,
        )

    def _shortlist(self, offers: Offers, question: Question) -> _Shortlist:
        entries, anybody = suiting(offers, question, self._availability)
        weights = self._weights_of(question.wish)
        scored = self._weigh(entries, question.mode, question.wish, weights)
        best = tuple(one.entry for one in scored[:_SHORTLISTED])
        found = _Shortlist(best, len(entries), self._clock(), anybody)
        self._shortlists[question] = found
        self._shortlists.move_to_end(question)
        while len(self._shortlists) > _MAX_SHORTLISTS:
            self._shortlists.popitem(last=False)
        return found

    def _weigh(
        self,
        entries: Iterable[Entry],
        mode: Mode,
        wish: Wish,
        weights: Weights,
        *,
        resting_too: bool = False,
    ) -> list[Scored]:
        """Score the entries whose provider may be asked, the best first; equals stay in the catalog's order."""
        rooms: dict[str, float | None] = {}
        there: list[Entry] = []
        for entry in entries:
            provider_id = entry.provider.peer_id
            if provider_id not in rooms:
                rooms[provider_id] = self._room(entry.provider, resting_too=resting_too)
            if rooms[provider_id] is not None:
                there.append(entry)
        views = self._records.views([(one.provider.peer_id, one.model) for one in there], mode)
        prices = [_price(entry, view) for entry, view in zip(there, views, strict=True)]
        times = [view.expected_s for view in views if view.expected_s is not None]
        best_s = min(times, default=None)
        best_msat = min([price for price in prices if price is not None], default=None)
        fits: dict[float | None, float] = {}
        scored = []
        for entry, view, price_msat in zip(there, views, prices, strict=True):
            params_b = entry.traits.params_b
            fit = fits.get(params_b)
            if fit is None:
                fit = fits[params_b] = round(fit_feature(params_b, wish.size), _DIGITS)
            features = Features(
                rooms[entry.provider.peer_id] or 0.0,
                round(speed_feature(view.expected_s, best_s), _DIGITS),
                round(view.delivery, _DIGITS),
                round(price_feature(price_msat, best_msat), _DIGITS),
                fit,
            )
            scored.append(Scored(entry, features.score(weights), features, view))
        scored.sort(key=attrgetter("score"), reverse=True)
        return scored

    def _room(self, provider: Provider, *, resting_too: bool) -> float | None:
        """Give how much room a provider has, from 0 to 1; None where it may not be asked now."""
        available = self._availability(provider.peer_id)
        if not available and not resting_too:
            return None
        in_flight = self._records.in_flight(provider.peer_id)
        return round(available * load_feature(in_flight, provider.max_inflight_jobs), _DIGITS)


def _price(entry: Entry, view: View) -> float | None:
    listed = entry.provider.list_price_msat
    # A node's price list is certain, where it has one price for everything; else what was asked lately.
    return float(listed) if listed is not None else view.price_msat


def _in_turn(considered: Sequence[Scored], chosen: int) -> tuple[Scored, ...]:
    """Give the chosen one, then the best of each other provider, then the rest."""
    first = considered[chosen]
    seen = {first.entry.provider.peer_id}
    others: list[Scored] = []
    again: list[Scored] = []
    for one in considered:
        if one is first:
            continue
        provider_id = one.entry.provider.peer_id
        (again if provider_id in seen else others).append(one)
        seen.add(provider_id)
    return (first, *others, *again)


def replay(line: Mapping[str, Any]) -> tuple[str, str]:
    """Make a choice again from what ``Decision.as_log`` gave; gives the provider's id and the model.

    Raises:
        KeyError, ValueError: the line is not such.
    """
    weights = Weights(*map(float, line["weights"].split()))
    scores, names = [], []
    for row in line["considered"]:
        *features, provider_id, model = row.split(" ", 6)
        scores.append(Features(*map(float, features)).score(weights))
        names.append((provider_id, model))
    return names[pick(scores, float(line["temperature"]), float(line["draw"]))]
