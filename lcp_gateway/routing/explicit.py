"""The providers of a model that the client named: the mapped one, the default peer, those that offer it, or may, or the first."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lcp_gateway.purchase.order import Task, TaskKind
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.routing.catalog import Catalog, Provider

_NAMED_AT_MOST = 10
# The kinds of task that Lightning peers take: an operator may map a model to a peer that does not advertise it.
_OF_PEERS = frozenset({TaskKind.CHAT_COMPLETIONS, TaskKind.RESPONSES, TaskKind.COMPLETIONS})


class RoutingError(Exception):
    """No provider for a task. The message is fit for the client."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ModelNotFound(RoutingError):
    """The model is not on the allowlist, or no provider offers it for this endpoint."""


class ContextTooLong(RoutingError):
    """The request is clearly longer than every model's context; ``param`` names the field that is too long."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


class NoProvider(RoutingError):
    """No provider can do it now: no peers, or the one that was asked for is not ready."""


@dataclass(frozen=True, slots=True)
class RoutingRules:
    """The operator's rules: the models allowed, and the provider of each.

    ``by_score`` has the peers of a model that was named asked in the order of their scores, rather than in the daemon's.
    """

    model_peers: Mapping[str, str] = field(default_factory=dict)
    default_peer_id: str | None = None
    allowlist: frozenset[str] = frozenset()
    allow_unlisted: bool = False
    by_score: bool = False


def kinds_of(kind: TaskKind) -> tuple[TaskKind, ...]:
    """Return the kinds of task as which one can be done, the first choice first: completions also as a chat."""
    if kind is TaskKind.COMPLETIONS:
        return (TaskKind.COMPLETIONS, TaskKind.CHAT_COMPLETIONS)
    return (kind,)


def explicit_providers(
    catalog: Catalog,
    task: Task,
    rules: RoutingRules,
    available: Callable[[str], bool] = lambda _peer_id: True,
    *,
    asked_as: str = "",
) -> Sequence[Provider]:
    """Return the providers for a task, the first choice first; more than one where all of them offer the model.

    ``available`` says of a provider's id whether it is to be asked at present; one that the operator named is asked in
    any case, since there is no other. ``asked_as`` is the alias under which the client asked for the model.

    Raises:
        ModelNotFound: the model may not be used or is not offered.
        NoProvider: no provider that may do it is ready.
    """
    offering = _offering(catalog, task)
    _check_model(catalog, task, rules, asked_as, offering)
    if mapped := rules.model_peers.get(task.model):
        return (_ready(catalog, mapped, "the provider that this model is mapped to is not ready"),)
    if (default := rules.default_peer_id) and task.kind in _OF_PEERS:
        # Nodes were named by the operator too: a model that only they offer goes to them.
        nodes = tuple(provider for provider in offering if provider.source is ProviderSource.NODE)
        if not nodes or any(provider.peer_id == default for provider in offering):
            return (_ready(catalog, default, "the default peer is not ready"),)
        offering = nodes
    if found := offering or _open_to(catalog, task):
        ready = [provider for provider in found if available(provider.peer_id)]
        if not ready:
            raise NoProvider("every provider of the model has failed lately; try again soon")
        return ready
    peers = [provider for provider in catalog.providers if provider.source is ProviderSource.LCP]
    if peers and task.kind in _OF_PEERS:
        return peers[:1]
    raise NoProvider("no peers are connected")


def _offering(catalog: Catalog, task: Task) -> tuple[Provider, ...]:
    found: dict[str, Provider] = {}
    for kind in kinds_of(task.kind):
        for provider in catalog.offering(kind, task.model):
            found.setdefault(provider.peer_id, provider)
    return tuple(found.values())


def _open_to(catalog: Catalog, task: Task) -> tuple[Provider, ...]:
    """Return the providers that take such tasks with models which they do not list."""
    kinds = frozenset(kinds_of(task.kind))
    return tuple(provider for provider in catalog.providers if not kinds.isdisjoint(provider.open_kinds))


def _check_model(
    catalog: Catalog, task: Task, rules: RoutingRules, asked_as: str, offering: Sequence[Provider]
) -> None:
    if not offering and task.kind is TaskKind.EMBEDDINGS:
        raise ModelNotFound(describe_embedding_models(catalog))
    if rules.allow_unlisted:
        return
    if rules.allowlist:
        if task.model not in rules.allowlist and asked_as not in rules.allowlist:
            raise ModelNotFound("the model is not on this gateway's allowlist")
    elif not offering and not _open_to(catalog, task) and any(catalog.advertises(kind) for kind in kinds_of(task.kind)):
        raise ModelNotFound(
            "no connected provider offers the model for this endpoint; see GET /v1/models, or ask for the model auto"
        )


def describe_embedding_models(catalog: Catalog) -> str:
    """Return a sentence on the models that embed, or on the others."""
    models = catalog.models_for(TaskKind.EMBEDDINGS)
    if models:
        return f"no provider here embeds with this model; the embedding models are: {_named(models)}"
    others = tuple(sorted(catalog.models()))
    if not others:
        return "no provider here offers embeddings: no provider is connected"
    return f"no provider here offers embeddings; there are only other models: {_named(others)}"


def _named(models: Sequence[str]) -> str:
    more = len(models) - _NAMED_AT_MOST
    return ", ".join(models[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def _ready(catalog: Catalog, provider_id: str, otherwise: str) -> Provider:
    if provider := catalog.peer(provider_id):
        return provider
    raise NoProvider(otherwise)
