"""What a node that dialled in offers: its models within the operator's terms, as a provider of the catalog."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from lcp_gateway.constants import NODE_PREFIX
from lcp_gateway.node_protocol.messages import NodeModel
from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.routing.catalog import ModelFacts, ModelPrice, Provider, merge_kinds
from lcp_gateway.upstreams.dialin.connection import NodeConnection
from lcp_gateway.upstreams.dialin.grants import NodeTerms
from lcp_gateway.upstreams.openai.price import NodePrice

KIND_NAMES: Final[Mapping[str, TaskKind]] = MappingProxyType(
    {
        "chat": TaskKind.CHAT_COMPLETIONS,
        "responses": TaskKind.RESPONSES,
        "completions": TaskKind.COMPLETIONS,
        "embeddings": TaskKind.EMBEDDINGS,
    }
)
"""The kinds of task by their names in the node protocol."""

DescribeModel = Callable[[str, frozenset[TaskKind]], frozenset[TaskKind]]
"""Returns which of these kinds a model takes, by what the operator says of it."""

_ADDRESS = "dialled in"


def price_of(model: NodeModel, terms: NodeTerms) -> NodePrice:
    """Return the price list of a model: the operator's where the terms have one, else the node's own."""
    if terms.price is not None:
        return terms.price
    price = model.price
    return NodePrice(
        per_request_msat=price.request_msat,
        per_1k_input_msat=price.input_1k_msat,
        per_1k_output_msat=price.output_1k_msat,
        per_minute_msat=price.minute_msat,
        max_output_tokens=model.max_output_tokens,
    )


def offered_models(
    node: NodeConnection, *, needs_probe: bool, describe: DescribeModel
) -> tuple[Mapping[str, frozenset[TaskKind]], Mapping[str, str]]:
    """Return the models that a node may offer with their kinds, and those that it may not with the reasons."""
    offered: dict[str, frozenset[TaskKind]] = {}
    refused: dict[str, str] = {}
    allowed = node.terms.models
    for name, model in node.models.items():
        kinds = describe(name, frozenset(KIND_NAMES[kind] for kind in model.kinds))
        if allowed and name not in allowed:
            refused[name] = "the operator does not allow this model here"
        elif not kinds:
            refused[name] = "the operator says that this model is of another kind"
        elif needs_probe and name not in node.passed:
            refused[name] = node.failed.get(name, "not probed yet")
        else:
            offered[name] = kinds
    return offered, refused


def provider_of(node: NodeConnection, offered: Mapping[str, frozenset[TaskKind]]) -> Provider:
    """Return the node as a provider of the catalog."""
    terms = node.terms
    prices = {name: price_of(node.models[name], terms) for name in offered}
    return Provider(
        peer_id=NODE_PREFIX + terms.node_id,
        address=_ADDRESS,
        protocol_version=0,
        # In the enumeration's order: a set has none to keep.
        models=merge_kinds(
            (kind, name) for name, kinds in offered.items() for kind in sorted(kinds, key=list(TaskKind).index)
        ),
        max_inflight_jobs=node.concurrent,
        source=ProviderSource.NODE,
        owned_by=terms.owned_by or terms.node_id,
        facts=MappingProxyType({name: _facts(node.models[name]) for name in offered}),
        list_price_msat=max((price.list_price_msat() for price in prices.values()), default=0),
        model_prices=MappingProxyType(
            {
                name: ModelPrice(price.list_price_msat(), price.by_size(terms.timeout_s))
                for name, price in prices.items()
            }
        ),
    )


def _facts(model: NodeModel) -> ModelFacts:
    return ModelFacts(model.context_length, model.created, frozenset(model.capabilities))
