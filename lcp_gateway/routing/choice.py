"""Who gets a task: a mapped peer, the default peer, a peer that advertises the model, or the first there is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lcp_gateway.purchase.task import Task
from lcp_gateway.routing.catalog import Catalog, Provider


class RoutingError(Exception):
    """No provider for a task. The message is fit for the client."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ModelNotFound(RoutingError):
    """The model is not on the allowlist, or nobody advertises it."""


class NoProvider(RoutingError):
    """Nobody is there to do it now: no peers, or the one that was asked for is not ready."""


@dataclass(frozen=True, slots=True)
class RoutingRules:
    """What the operator set: which models, and which peer for which."""

    model_peers: Mapping[str, str] = field(default_factory=dict)
    default_peer_id: str | None = None
    allowlist: frozenset[str] = frozenset()
    allow_unlisted: bool = False


def candidates(
    catalog: Catalog,
    task: Task,
    rules: RoutingRules,
    available: Callable[[str], bool] = lambda _peer_id: True,
) -> Sequence[Provider]:
    """Give the providers for a task, the first choice first; more than one where all of them advertise the model.

    ``available`` says of a peer id whether that peer is to be asked at present; a peer that the operator named is asked
    all the same, since there is no other.

    Raises:
        ModelNotFound: the model may not be used or is not offered.
        NoProvider: nobody who may do it is ready.
    """
    _check_model(catalog, task, rules)
    if mapped := rules.model_peers.get(task.model):
        return (_ready(catalog, mapped, "the peer that this model is mapped to is not ready"),)
    if rules.default_peer_id:
        return (_ready(catalog, rules.default_peer_id, "the default peer is not ready"),)
    if offering := catalog.offering(task.kind, task.model):
        found = tuple(provider for provider in offering if available(provider.peer_id))
        if not found:
            raise NoProvider("every peer that offers the model has failed lately; try again soon")
        return found
    if catalog.providers:
        return catalog.providers[:1]
    raise NoProvider("no peers are connected")


def _check_model(catalog: Catalog, task: Task, rules: RoutingRules) -> None:
    if rules.allow_unlisted:
        return
    if rules.allowlist:
        if task.model not in rules.allowlist:
            raise ModelNotFound("the model is not on this gateway's allowlist")
    elif catalog.advertises(task.kind) and not catalog.offering(task.kind, task.model):
        raise ModelNotFound("no connected peer offers the model for this endpoint")


def _ready(catalog: Catalog, peer_id: str, otherwise: str) -> Provider:
    if provider := catalog.peer(peer_id):
        return provider
    raise NoProvider(otherwise)
