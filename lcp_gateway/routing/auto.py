"""The choice that ``auto`` stands for: every model at every provider scored, one chosen, the others in reserve."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from heapq import nsmallest
from operator import attrgetter
from typing import Any

from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.routing.averages import ORDINARY_SIZE, Price, RequestSize
from lcp_gateway.routing.catalog import Provider
from lcp_gateway.routing.measurements import Measurements, Mode
from lcp_gateway.routing.offers import Entry, Offers
from lcp_gateway.routing.preferences import Preferences, Weights
from lcp_gateway.routing.requirements import Availability, OfferFilter, Requirements, matching_offers, offer_filter
from lcp_gateway.routing.scoring import (
    FEATURE_DIGITS,
    Features,
    QuoteComparison,
    Scored,
    ScoringRow,
    fit_feature,
    load_feature,
    pick,
    score_all,
)

# So many are scored for every request; the others only when the list is made, about once a second.
_SHORTLISTED = 12
_SHORTLIST_S = 1.0
_MAX_SHORTLISTS = 64
_UNKNOWN = "?"


@dataclass(frozen=True, slots=True)
class AutoPolicy:
    """The operator's weights, and how far the choice may stray from the best."""

    weights: Weights = field(default_factory=Weights)
    temperature: float = 0.05


@dataclass(frozen=True, slots=True)
class Decision:
    """The choice and its alternatives. ``ranked`` is the order in which to ask; its first is the chosen one.

    ``considered`` are the entries that were scored, the best first, ``offered`` is the number of all offers. With the
    weights, the temperature and ``draw`` the choice can be made again: ``considered[pick(scores, temperature, draw,
    prices)]``.
    """

    ranked: tuple[Scored, ...]
    considered: tuple[Scored, ...]
    offered: int
    preferences: Preferences
    requirements: Requirements
    weights: Weights
    temperature: float
    draw: float

    @property
    def chosen(self) -> Scored:
        """The first to ask."""
        return self.ranked[0]

    def reason(self, scored: Scored, among: Sequence[Scored] | None = None) -> str:
        """Return in words why one of those considered is asked; ``among`` are all of them as their quotes leave them."""
        merits = list(scored.merits)
        if wanted := sorted(self.requirements.capabilities | self.preferences.capabilities):
            merits += [f"has {word}" for word in wanted if scored.entry.traits.has(word)]
        place = 1 + sum(one.score > scored.score for one in among or self.considered)
        rank = "best score" if place == 1 else f"score {place}"
        return f"{rank} of {self.offered}" + (f": {', '.join(merits)}" if merits else "")

    def comparison(self) -> QuoteComparison:
        """Return the comparison of the candidates by their quotes; they are named by their places in ``considered``."""
        return QuoteComparison(self.considered, self.weights)

    def place(self, scored: Scored) -> int:
        """Return the place of one of those considered."""
        return next(at for at, one in enumerate(self.considered) if one is scored)

    def as_log(self) -> Mapping[str, object]:
        """Return everything that the choice depended on, in plain values and with all their digits.

        Each of ``considered`` is its features in the order of the weights, the price where it is known (in msat, else a
        question mark), the provider's id and the model's name.
        """
        return {
            "words": list(self.preferences.words),
            "needs": sorted(self.requirements.capabilities | self.preferences.capabilities),
            "tokens": self.requirements.tokens,
            "weights": " ".join(map(repr, astuple(self.weights))),
            "temperature": repr(self.temperature),
            "draw": repr(self.draw),
            "offered": self.offered,
            "considered": [
                f"{' '.join(map(repr, one.features))} {_shown(one.known_msat)} "
                f"{one.entry.provider.peer_id} {one.entry.model}"
                for one in self.considered
            ],
        }


@dataclass(slots=True)
class _Shortlist:
    entries: tuple[Entry, ...]
    offered: int
    made_at: float
    is_offered: bool


class NoMatch(Exception):
    """No provider can do it now; ``offered``: one could, and may not be asked at present."""

    def __init__(self, *, offered: bool) -> None:
        super().__init__("no match")
        self.offered = offered


class AutoChoice:
    """Decides. No I/O, one thread; ``clock`` is a monotonic clock in seconds.

    Of many entries the best are found once a second, and those are weighed for every request with what is known then.
    """

    def __init__(
        self, policy: AutoPolicy, measurements: Measurements, availability: Availability, *, clock: Callable[[], float]
    ) -> None:
        self._policy = policy
        self._measurements = measurements
        self._availability = availability
        self._clock = clock
        self._offers: Offers | None = None
        self._shortlists: OrderedDict[OfferFilter, _Shortlist] = OrderedDict()
        self._weights: dict[Preferences, Weights] = {}

    def decide(
        self,
        offers: Offers,
        kind: TaskKind,
        mode: Mode,
        preferences: Preferences,
        requirements: Requirements,
        draw: float,
        *,
        size: RequestSize = ORDINARY_SIZE,
        native: bool = False,
        only: frozenset[str] = frozenset(),
    ) -> Decision:
        """Choose for one request; ``draw`` is uniform in [0, 1), ``native`` leaves adapters out, ``only`` other models.

        Prices are those of a request of ``size``.

        Raises:
            NoMatch: no offer meets the requirements, or its provider may not be asked.
        """
        if offers is not self._offers:
            self._offers = offers
            self._shortlists.clear()
        conditions = offer_filter(kind, mode, preferences, requirements, native=native, only=only)
        found = self._shortlists.get(conditions)
        if found is None or self._clock() - found.made_at > _SHORTLIST_S:
            found = self._shortlist(offers, conditions, size)
        weights = self._weights_of(preferences)
        considered = self._weigh(found.entries, mode, preferences, weights, size)
        if not considered:
            # All on the list have gone within the last second.
            found = self._shortlist(offers, conditions, size)
            considered = self._weigh(found.entries, mode, preferences, weights, size)
        if not considered:
            raise NoMatch(offered=found.is_offered)
        return self._decision(considered, found.offered, preferences, requirements, weights, draw)

    def order(
        self, entries: Sequence[Entry], mode: Mode, draw: float, size: RequestSize = ORDINARY_SIZE
    ) -> Decision | None:
        """Put the providers of one model that the client named in order; None where none of them may be asked now."""
        preferences = Preferences()
        weights = self._weights_of(preferences)
        considered = self._weigh(entries, mode, preferences, weights, size)
        if not considered:
            return None
        return self._decision(considered, len(considered), preferences, Requirements(), weights, draw)

    def rank(
        self,
        entries: Sequence[Entry],
        mode: Mode,
        preferences: Preferences,
        most: int,
        size: RequestSize = ORDINARY_SIZE,
    ) -> Sequence[Scored]:
        """Score entries, the best first, those of paused peers too; for display."""
        weights = self._weights_of(preferences)
        return self._weigh(entries, mode, preferences, weights, size, resting_too=True)[:most]

    def _weights_of(self, preferences: Preferences) -> Weights:
        weights = self._weights.get(preferences)
        if weights is None:
            if len(self._weights) >= _MAX_SHORTLISTS:
                self._weights.clear()
            weights = self._weights[preferences] = preferences.weights(self._policy.weights)
        return weights

    def _decision(
        self,
        considered: Sequence[Scored],
        offered: int,
        preferences: Preferences,
        requirements: Requirements,
        weights: Weights,
        draw: float,
    ) -> Decision:
        temperature = self._policy.temperature
        scores, prices = [one.score for one in considered], [one.known_msat for one in considered]
        chosen = pick(scores, temperature, draw, prices)
        return Decision(
            _in_turn(considered, chosen),
            tuple(considered),
            offered,
            preferences,
            requirements,
            weights,
            temperature,
            draw,
        )

    def _shortlist(self, offers: Offers, conditions: OfferFilter, size: RequestSize) -> _Shortlist:
        entries, is_offered = matching_offers(offers, conditions, self._availability)
        weights = self._weights_of(conditions.preferences)
        weighed = self._distinct(entries, conditions.preferences)
        scored = self._weigh(weighed, conditions.mode, conditions.preferences, weights, size)
        best = _shortlisted(scored)
        found = _Shortlist(best, len(entries), self._clock(), is_offered)
        self._shortlists[conditions] = found
        self._shortlists.move_to_end(conditions)
        while len(self._shortlists) > _MAX_SHORTLISTS:
            self._shortlists.popitem(last=False)
        return found

    def _distinct(self, entries: Sequence[Entry], preferences: Preferences) -> Sequence[Entry]:
        """Leave out entries that cannot come onto a shortlist: whatever the weights, enough others rank before them.

        Models of one provider that were never bought differ by how well their sizes fit, and else by their places alone.
        """
        if len(entries) <= _SHORTLISTED:
            return entries
        fits: dict[float | None, float] = {}
        unseen: dict[str, list[tuple[float, int]]] = {}
        kept: set[int] = set()
        for at, entry in enumerate(entries):
            provider_id, params_b = entry.provider.peer_id, entry.traits.params_b
            if self._measurements.has_seen(provider_id, entry.model):
                kept.add(at)
                continue
            fit = fits.get(params_b)
            if fit is None:
                fit = fits[params_b] = round(fit_feature(params_b, preferences.size), FEATURE_DIGITS)
            unseen.setdefault(provider_id, []).append((-fit, at))
        for places in unseen.values():
            # The first ones where sizes do not count, and those that fit best where they do.
            kept.update(at for _, at in places[:_SHORTLISTED])
            kept.update(at for _, at in nsmallest(_SHORTLISTED, places))
        return [entries[at] for at in sorted(kept)]

    def _weigh(
        self,
        entries: Iterable[Entry],
        mode: Mode,
        preferences: Preferences,
        weights: Weights,
        size: RequestSize,
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
        pairs = [(one.provider.peer_id, one.model) for one in there]
        views, prices = (self._measurements.views(pairs, mode), self._measurements.prices(pairs, size))
        fits: dict[float | None, float] = {}
        rows = []
        for entry, view, price in zip(there, views, prices, strict=True):
            params_b = entry.traits.params_b
            fit = fits.get(params_b)
            if fit is None:
                fit = fits[params_b] = round(fit_feature(params_b, preferences.size), FEATURE_DIGITS)
            listed = listed_msat(entry.provider, entry.model, size)
            # A node's price list is certain, a peer's price an estimate from its quotes for such a size.
            sure = price if listed is None else Price(listed, is_known=True)
            rows.append(ScoringRow(entry, rooms[entry.provider.peer_id] or 0.0, fit, view, sure))
        scored = score_all(rows, weights)
        scored.sort(key=attrgetter("score"), reverse=True)
        return scored

    def _room(self, provider: Provider, *, resting_too: bool) -> float | None:
        """Return how much room a provider has, from 0 to 1; None where it may not be asked now."""
        available = self._availability(provider.peer_id)
        if not available and not resting_too:
            return None
        in_flight = self._measurements.in_flight(provider.peer_id)
        return round(available * load_feature(in_flight, provider.max_inflight_jobs), FEATURE_DIGITS)


def listed_msat(provider: Provider, model: str, size: RequestSize) -> float | None:
    """Return the price of a request by a node's price list; None for a peer, which has none."""
    price_list = provider.price_list_of(model)
    if price_list is not None and size is not ORDINARY_SIZE:
        return price_list.most_msat(*size)
    listed = provider.listed_msat(model)
    return None if listed is None else float(listed)


def _shortlisted(scored: Sequence[Scored]) -> tuple[Entry, ...]:
    """Return the best, and the best of the cheapest, with which a surprising quote has to be compared."""
    best = [one.entry for one in scored[:_SHORTLISTED]]
    known = [one for one in scored if one.known_msat is not None]
    if known:
        cheapest = min(known, key=lambda one: one.known_msat or 0.0).entry
        if all(entry is not cheapest for entry in best):
            best.append(cheapest)
    return tuple(best)


def _in_turn(considered: Sequence[Scored], chosen: int) -> tuple[Scored, ...]:
    """Return the chosen one, then the best of each other provider, then the rest.

    Where the price of the chosen one is not known, the best of those whose price is comes next: its quote is compared
    with that one.
    """
    first = considered[chosen]
    seen = {first.entry.provider.peer_id}
    next_ones: list[Scored] = []
    if first.known_msat is None:
        known = (one for one in considered if one.known_msat is not None and one.entry.provider.peer_id not in seen)
        next_ones = [one for one in (next(known, None),) if one is not None]
        seen.update(one.entry.provider.peer_id for one in next_ones)
    others: list[Scored] = []
    again: list[Scored] = []
    for one in considered:
        if one is first or one in next_ones:
            continue
        provider_id = one.entry.provider.peer_id
        (again if provider_id in seen else others).append(one)
        seen.add(provider_id)
    return (first, *next_ones, *others, *again)


def _shown(msat: float | None) -> str:
    return _UNKNOWN if msat is None else repr(round(msat, 3))


def replay(line: Mapping[str, Any]) -> tuple[str, str]:
    """Make a choice again from a line of ``Decision.as_log``; return the provider's id and the model.

    Raises:
        KeyError, ValueError: the line is not such.
    """
    weights = Weights(*map(float, line["weights"].split()))
    scores, prices, names = [], [], []
    for row in line["considered"]:
        *features, price, provider_id, model = row.split(" ", 7)
        scores.append(Features(*map(float, features)).score(weights))
        prices.append(None if price == _UNKNOWN else float(price))
        names.append((provider_id, model))
    return names[pick(scores, float(line["temperature"]), float(line["draw"]), prices)]
