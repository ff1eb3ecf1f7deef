"""A choice looked at again once prices are known: a quote costs nothing, so that a surprise in one need not be paid."""

from collections.abc import Mapping, Sequence

from lcp_gateway.purchase.quote import Source
from lcp_gateway.routing.policy import Weights
from lcp_gateway.routing.prices import Price
from lcp_gateway.routing.weighing import Row, Scored, weigh

# A quote within ten per cent of what was expected changes nothing, or each request would cost several quotes.
_AS_EXPECTED = 1.1
_MSAT = 1.0


class QuoteComparison:
    """Weighs the candidates of one decision by what they really ask. They go by their places in the decision's list."""

    def __init__(self, considered: Sequence[Scored], weights: Weights) -> None:
        self._considered = considered
        self._weights = weights

    def next(self, asked: Mapping[int, int], left: Sequence[int], *, peers_too: bool) -> int | None:
        """Return the place of the candidate to be asked as well before one of those that quoted is paid.

        ``asked`` holds the quotes, ``left`` the places of the others in their order; ``peers_too`` allows another call to
        a peer, where a node's price takes none. None where the best of those that quoted can be taken.
        """
        if self.is_as_expected(asked):
            return None
        left = [place for place in left if peers_too or self._is_node(place)]
        known = [place for place in left if self._considered[place].price.is_known]
        scores = [one.score for one in self.weighed(asked)]
        if known:
            best = max(known, key=lambda place: scores[place])
            return best if scores[best] > max(scores[place] for place in asked) else None
        if len(asked) > 1:
            return None
        # The only price that is known is no measure of itself: a second one is asked for.
        providers = {self._provider(place) for place in asked}
        others = (place for place in left if self._provider(place) not in providers)
        return next(others, None)

    def is_as_expected(self, asked: Mapping[int, int]) -> bool:
        """Tell whether the quotes say nothing that the choice was not made by."""
        return not any(self._is_surprising(place, msat) for place, msat in asked.items())

    def best(self, asked: Mapping[int, int]) -> int:
        """Return the place of the best of those that quoted; the first of equals."""
        if len(asked) == 1:
            return next(iter(asked))
        scores = [one.score for one in self.weighed(asked)]
        return max(asked, key=lambda place: scores[place])

    def weighed(self, asked: Mapping[int, int]) -> Sequence[Scored]:
        """Return all candidates at their places as they compare now that some have quoted."""
        rows = [
            Row(
                one.entry,
                one.features.availability,
                one.features.fit,
                one.view,
                Price(float(asked[place]), is_known=True) if place in asked else one.price,
            )
            for place, one in enumerate(self._considered)
        ]
        return weigh(rows, self._weights)

    def _is_surprising(self, place: int, msat: int) -> bool:
        price = self._considered[place].price
        if not price.is_known or price.msat is None:
            return True
        return msat > price.msat * _AS_EXPECTED + _MSAT

    def _is_node(self, place: int) -> bool:
        return self._considered[place].entry.provider.source is Source.NODE

    def _provider(self, place: int) -> str:
        return self._considered[place].entry.provider.peer_id
