"""The settings that concern the market: who offers compute, what the models are, and how one is chosen."""

from pydantic_settings import BaseSettings

from lcp_gateway.config import forms
from lcp_gateway.config.declare import Group, setting
from lcp_gateway.config.models import Models
from lcp_gateway.config.nodes import Nodes, OpenClawUrl


class MarketSettings(BaseSettings):
    """One part of ``Settings``, which see."""

    default_peer_id: forms.OptionalProvider = setting(
        "",
        "The provider for models that `model_map` does not name: a peer's id, or `node:NAME`.",
        Group.ROUTING,
        openai_serve="DEFAULT_PEER_ID",
    )
    model_map: forms.ModelMap = setting(
        {},
        'Which provider serves which model: a table, or "model=provider;model=provider".',
        Group.ROUTING,
        openai_serve="MODEL_MAP",
    )
    model_allowlist: forms.Names = setting(
        (),
        "The only models that may be asked for. All that providers advertise when empty.",
        Group.ROUTING,
        openai_serve="MODEL_ALLOWLIST",
    )
    allow_unlisted_models: forms.Switch = setting(
        False,
        "Let models through that no provider advertises.",
        Group.ROUTING,
        openai_serve="ALLOW_UNLISTED_MODELS",
    )

    explicit_choice: forms.Choice = setting(
        "order",
        "Who is asked first where several peers offer the model that a client names: in the daemon's `order`, as with "
        "openai-serve, or by `score`, as for `auto`. Where a node offers it too, scores always decide.",
        Group.ROUTING,
    )

    models: Models = setting(
        {},
        'What is known of models, each in a table `[models."name"]`. It goes before what providers say of a model and '
        "before what its name tells. `[models.auto]` holds nothing but other names for `auto`.",
        Group.ROUTING,
    )
    nodes: Nodes = setting(
        (),
        "OpenAI-compatible HTTP servers that are providers beside the peers, each in a table `[[nodes]]`. One is named "
        "`node:NAME` elsewhere.",
        Group.ROUTING,
    )
    nodes_refresh_s: forms.Duration = setting(
        15.0,
        "How often nodes are asked whether they are there, and for their models.",
        Group.ROUTING,
        gt=0,
    )

    openclaw_enabled: forms.Switch = setting(
        False, "Take an OpenClaw instance in as a node.", Group.ROUTING, openclaw="ENABLED"
    )
    openclaw_base_url: OpenClawUrl = setting(
        "", "Where it is, for example `http://127.0.0.1:3000`.", Group.ROUTING, openclaw="BASE_URL"
    )
    openclaw_api_key: forms.BearerKey = setting(
        "", "The key that it asks for, if any.", Group.ROUTING, openclaw="API_KEY", secret=True
    )
    openclaw_node_name: forms.NodeName = setting(
        "OpenClaw",
        "The node's name, and the owner of its models.",
        Group.ROUTING,
        openclaw="NODE_NAME",
    )
    openclaw_price: forms.Number = setting(
        0.0, "Its price in sat a minute of use; 0 is free.", Group.ROUTING, openclaw="PRICE"
    )
    openclaw_timeout: forms.Duration = setting(
        120.0, "How long a request to it may take.", Group.ROUTING, openclaw="TIMEOUT", gt=0
    )

    routing_weight_availability: forms.Number = setting(
        0.15,
        "How much it counts that a provider is there, where the choice is left to the gateway. Only the proportions of "
        "the five weights matter.",
        Group.ROUTING,
    )
    routing_weight_speed: forms.Number = setting(
        0.30, "The same for its measured speed.", Group.ROUTING
    )
    routing_weight_delivery: forms.Number = setting(
        0.25, "The same for how much of what it was asked for came.", Group.ROUTING
    )
    routing_weight_price: forms.Number = setting(0.20, "The same for its price.", Group.ROUTING)
    routing_weight_fit: forms.Number = setting(
        0.10, "The same for how well the model fits the request.", Group.ROUTING
    )
    routing_temperature: forms.Number = setting(
        0.05, "How far the choice strays from the best score; small is strict.", Group.ROUTING, gt=0
    )
    routing_half_life_s: forms.Duration = setting(
        300.0, "The age at which a measurement counts half.", Group.ROUTING, gt=0
    )
