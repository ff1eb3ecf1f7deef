"""The model registry: what the operator says of a model, over what providers' lists say, over what its name tells."""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from lcp_gateway.purchase.task import TaskKind
from lcp_gateway.routing.catalog import ModelFacts
from lcp_gateway.routing.model_names import EMBEDDING, REMEMBERED_NAMES, NameFacts, read_name

AUTO: Final = "auto"
"""The name under which a client leaves the choice of the model to the gateway."""

COMPLETION: Final = "completion"

# What a model that turns text into numbers cannot do, whoever made it.
_NOT_OF_EMBEDDINGS = frozenset({"vision", "tools", "json_schema", "audio"})


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What the operator says of a model; 0, empty and ``None`` where nothing is said.

    ``type`` is ``chat``, ``completion`` or ``embedding``. ``params_b`` is in billions. ``capabilities`` that are given
    are all that the model has. ``aliases`` are other names under which clients may ask for it.
    """

    type: str = ""
    context_length: int = 0
    dimensions: int = 0
    params_b: float = 0.0
    capabilities: tuple[str, ...] | None = None
    owned_by: str = ""
    aliases: tuple[str, ...] = ()
    max_price_msat: int = 0
    max_total_msat: int = 0
    default_temperature: float | None = None
    default_max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Traits:
    """What is known of a model from all sources; 0, empty and ``None`` where nobody says.

    ``complete`` means that the model has no other ``capabilities`` than these. ``vendor`` is who made it, as far as
    the name tells; ``owned_by`` what the operator wants shown.
    """

    type: str
    context_length: int
    dimensions: int
    params_b: float | None
    capabilities: frozenset[str]
    complete: bool
    vendor: str
    owned_by: str

    def has(self, capability: str) -> bool | None:
        """Tell whether the model can do something; ``None`` where nobody knows."""
        if capability in self.capabilities:
            return True
        if self.complete or (self.type == EMBEDDING and capability in _NOT_OF_EMBEDDINGS):
            return False
        return None


class Registry:
    """The models that the operator described, by their real names; ``auto`` may be among them, for its aliases."""

    def __init__(self, cards: Mapping[str, ModelCard]) -> None:
        self._cards = dict(cards)
        self._real_names = {
            alias: name
            for name, card in self._cards.items()
            for alias in card.aliases
            if alias not in self._cards
        }

    def resolve(self, name: str) -> str:
        """Give the real name behind an alias, ``auto`` for an alias of that; any other name stays as it is."""
        return self._real_names.get(name, name)

    def card(self, name: str) -> ModelCard | None:
        """Give what the operator says of the model with this real name."""
        return self._cards.get(name)

    def names(self) -> tuple[str, ...]:
        """Give the real names of the models that are described, in the operator's order; ``auto`` is no model."""
        return tuple(name for name in self._cards if name != AUTO)

    def traits(self, model: str, facts: Iterable[ModelFacts] = ()) -> Traits:
        """Put together what is known of a model; ``facts`` are what the lists of its providers say.

        A capability counts when a list or the name tells of it, unless the operator says which there are. A context is
        taken to be as long as the shortest that a list names.
        """
        listed = tuple(facts)
        if model not in self._cards and not listed:
            return _traits_told(read_name(model))
        card = self._cards.get(model) or ModelCard()
        told = read_name(model)
        if card.capabilities is None:
            capabilities = told.capabilities.union(*(found.capabilities for found in listed))
        else:
            capabilities = frozenset(card.capabilities)
        contexts = (found.context_length for found in listed if found.context_length)
        return Traits(
            type=card.type or told.type,
            context_length=card.context_length or min(contexts, default=0),
            dimensions=card.dimensions,
            params_b=card.params_b or told.params_b,
            capabilities=capabilities,
            complete=card.capabilities is not None,
            vendor=told.vendor,
            owned_by=card.owned_by,
        )


@functools.lru_cache(maxsize=REMEMBERED_NAMES)
def _traits_told(told: NameFacts) -> Traits:
    """Return what is known of a model of which nothing but its name is."""
    return Traits(
        type=told.type,
        context_length=0,
        dimensions=0,
        params_b=told.params_b,
        capabilities=told.capabilities,
        complete=False,
        vendor=told.vendor,
        owned_by="",
    )


def kinds_for(traits: Traits, endpoints: frozenset[TaskKind]) -> frozenset[TaskKind]:
    """Give the kinds of task that a model takes on a node that serves ``endpoints``.

    A model of unknown type is taken to speak chat, except on a node that serves nothing but embeddings.
    """
    embeddings = frozenset({TaskKind.EMBEDDINGS})
    if traits.type == EMBEDDING:
        return endpoints & embeddings
    if traits.type == COMPLETION:
        return endpoints & {TaskKind.COMPLETIONS}
    if not traits.type and endpoints == embeddings:
        return endpoints
    return endpoints - embeddings


def is_auto(model: str) -> bool:
    """Tell whether a model's name leaves the choice to the gateway."""
    return model == AUTO or model.startswith(AUTO + ":")
