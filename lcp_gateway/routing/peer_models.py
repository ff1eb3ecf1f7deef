"""The models of peers that list none, as those of protocol version 3 do.

They come from the operator, whose list is then all that a peer offers; else from purchases that were delivered, and from
the names in a peer's refusal. What a peer names is a hint: it is asked for a quote like any other before it is paid.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.routing.catalog import Provider, merge_kinds

LISTS_NO_MODELS: Final = 3
"""The version of the protocol whose peers list no models."""

EVERY_PEER: Final = "*"
"""In the operator's list: each peer that has no list of its own."""

_MAX_PEERS = 1_024
_MAX_BOUGHT = 256
_MAX_HINTS = 64
_MAX_CHARS = 256


@dataclass(slots=True)
class _Known:
    bought: OrderedDict[tuple[TaskKind, str], None] = field(default_factory=OrderedDict)
    hints: tuple[str, ...] = ()


class PeerModels:
    """What is known of the models of peers that list none. It affects no other peer and no node."""

    def __init__(
        self, configured: Mapping[str, Sequence[str]] | None = None, mapped: Mapping[str, str] | None = None
    ) -> None:
        """``configured`` are the operator's lists by peer id or ``EVERY_PEER``, ``mapped`` the provider of each mapped model."""
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self.use(configured or {}, mapped or {})

    def use(self, configured: Mapping[str, Sequence[str]], mapped: Mapping[str, str]) -> None:
        """Use other lists of the operator; what was learned stays."""
        self._configured = configured
        self._mapped = mapped

    def bought(self, peer_id: str, kind: TaskKind, model: str) -> None:
        """Record that a peer delivered a result of a model."""
        if len(model) > _MAX_CHARS:
            return
        bought = self._of(peer_id).bought
        bought[kind, model] = None
        bought.move_to_end((kind, model))
        if len(bought) > _MAX_BOUGHT:
            bought.popitem(last=False)

    def named(self, peer_id: str, models: Iterable[str]) -> None:
        """Record the models that a peer named in a refusal, in place of those that it named before."""
        fit = (model for model in dict.fromkeys(models) if 0 < len(model) <= _MAX_CHARS and model.isprintable())
        self._of(peer_id).hints = tuple(fit)[:_MAX_HINTS]

    def complete(self, provider: Provider) -> Provider:
        """Return a provider with the models that its list leaves open; the same one where it leaves none open.

        Where the operator listed its models, they are all, and it is not open any more.
        """
        kinds = [kind for kind in TaskKind if kind in provider.open_kinds]
        if not kinds:
            return provider
        mapped = [model for model, peer_id in self._mapped.items() if peer_id == provider.peer_id]
        listed = self._configured.get(provider.peer_id, self._configured.get(EVERY_PEER))
        if listed is not None:
            models = merge_kinds((kind, model) for kind in kinds for model in (*listed, *mapped))
            return replace(provider, models=models, open_kinds=frozenset())
        known = self._known.get(provider.peer_id) or _Known()
        offers = [(kind, model) for kind in kinds for model in (*mapped, *known.hints)]
        offers += [(kind, model) for kind, model in known.bought if kind in provider.open_kinds]
        # Sorted, so that a catalog stays the same while nothing is learned.
        return replace(provider, models=merge_kinds(sorted(offers)))

    def _of(self, peer_id: str) -> _Known:
        known = self._known.get(peer_id)
        if known is None:
            known = self._known[peer_id] = _Known()
            if len(self._known) > _MAX_PEERS:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(peer_id)
        return known
