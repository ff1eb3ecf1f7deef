"""What the doctor says of the nodes: HTTP servers that are providers beside the peers."""

from collections.abc import Iterator, Mapping

from lcp_gateway.cli.finding import Finding
from lcp_gateway.cli.output import plain
from lcp_gateway.config import NodeConfig, Settings, all_nodes
from lcp_gateway.routing.catalog import Catalog
from lcp_gateway.upstreams.watched import NodeState


def node_findings(settings: Settings, states: Mapping[str, NodeState]) -> Iterator[Finding]:
    """Say of each node whether it is up, or why not."""
    for node in all_nodes(settings):
        state = states[node.name]
        if not state.up:
            text = f"{node.name}: {plain(state.problem)}"
            yield Finding("node", False, text, _advice(state.problem, node))
        elif not state.models:
            text = f"{node.name}: up, and offers no models"
            yield Finding("node", False, text, "load a model there, or name some in its models")
        else:
            yield Finding("node", True, f"{node.name}: up, {state.models} models")


def unready(catalog: Catalog, settings: Settings) -> list[str]:
    """Give what the settings send requests to and nobody finds there, in words."""
    named = [
        *((provider_id, f"for {model}") for model, provider_id in settings.model_map.items()),
        (settings.default_peer_id, "as the default peer"),
    ]
    return [
        f"{provider_id} {purpose}"
        for provider_id, purpose in named
        if provider_id and not catalog.peer(provider_id)
    ]


def _advice(problem: str, node: NodeConfig) -> str:
    if "credentials" in problem:
        return "set its api_key to the one that it asks for"
    if "list of models" in problem:
        return "name its models in the configuration, or check its base_url"
    return f"is it running at {node.base_url}?"
