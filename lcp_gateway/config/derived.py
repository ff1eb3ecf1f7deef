"""Values that follow from several settings together: authentication, the console, host names, nodes, mark-ups, limits, proxies."""

import ipaddress
import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from lcp_gateway.config.addresses import JOURNAL_OFF, is_loopback, parse_host_port
from lcp_gateway.config.models import ModelConfig
from lcp_gateway.config.nodes import ENDPOINTS, LOCAL_NODE, LOCAL_URL, NodeConfig
from lcp_gateway.config.parsers import MAX_WORKERS, WORKERS_AUTO
from lcp_gateway.config.settings import Settings
from lcp_gateway.constants import NODE_PREFIX

_LOCAL_TIMEOUT_S = 600.0
"""A local model may have to be loaded first, and computes without a graphics card."""


def auth_mode(settings: Settings) -> str:
    """Return the mode of authentication: none, keys or accounts."""
    return settings.auth or ("keys" if settings.api_keys else "none")


def is_open_to_others(settings: Settings) -> bool:
    """Return whether other machines can reach the gateway: it does not listen on the loopback interface alone."""
    return not is_loopback(parse_host_port(settings.http_addr).host)


def console_problem(settings: Settings) -> str:
    """Return why the web console cannot be served, whatever ``console`` says; empty where it can."""
    if auth_mode(settings) == "none":
        if not is_open_to_others(settings):
            return ""
        return f"{settings.http_addr} can be reached by other machines, and without keys any client there would see your purchases"
    if settings.journal_url == JOURNAL_OFF:
        return "sign-in keeps its sessions in the journal's database, which is off"
    return ""


def serves_console(settings: Settings) -> bool:
    """Return whether the web console is served."""
    return settings.console != "off" and not console_problem(settings)


def worker_count(settings: Settings) -> int:
    """Return how many processes serve."""
    if settings.workers != WORKERS_AUTO:
        return int(settings.workers)
    # The cores that this process may use, which a container or a service may limit.
    allowed = getattr(os, "sched_getaffinity", None)
    return min(len(allowed(0)) if allowed is not None else os.cpu_count() or 1, MAX_WORKERS)


def known_hosts(settings: Settings) -> tuple[str, ...]:
    """Return the names by which clients without a credential may reach the gateway: ``allowed_hosts``, and those it listens on."""
    listening = [parse_host_port(address).host for address in (settings.http_addr, settings.metrics_addr) if address]
    return (*settings.allowed_hosts, *filter(None, listening))


def markups(settings: Settings) -> Mapping[str, tuple[float, int]]:
    """Return the mark-ups, in percent and msat: by model where it has its own, else under an empty name."""
    default = settings.markup_percent, settings.markup_msat
    return {"": default} | {
        name: (
            default[0] if model.markup_percent is None else model.markup_percent,
            default[1] if model.markup_msat is None else model.markup_msat,
        )
        for name, model in settings.models.items()
        if model.markup_percent is not None or model.markup_msat is not None
    }


def model_limits(settings: Settings) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """Return the limits of models in msat: of the price alone, and of price and fee, the lower of two for one model."""
    prices = {name: model.max_price_msat for name, model in settings.models.items()}
    totals = dict(settings.model_max_total_msat)
    for name, model in settings.models.items():
        if model.max_total_msat:
            totals[name] = min(model.max_total_msat, totals.get(name) or model.max_total_msat)
    return {name: limit for name, limit in prices.items() if limit}, totals


def local_models(settings: Settings) -> Mapping[str, ModelConfig]:
    """Return the models that the gateway runs itself, by name."""
    return {name: model for name, model in settings.models.items() if model.path or model.hf_repo}


def all_nodes(settings: Settings) -> tuple[NodeConfig, ...]:
    """Return every node of the settings, with that of local models, and OpenClaw's as the last where it is enabled."""
    nodes = settings.nodes
    if local_models(settings) and all(node.name != LOCAL_NODE for node in nodes):
        nodes = (*nodes, NodeConfig(LOCAL_NODE, LOCAL_URL, timeout_s=_LOCAL_TIMEOUT_S, endpoints=ENDPOINTS))
    if not settings.openclaw_enabled:
        return nodes
    openclaw = NodeConfig(
        name=settings.openclaw_node_name,
        base_url=settings.openclaw_base_url,
        api_key=settings.openclaw_api_key,
        price_per_minute_sat=settings.openclaw_price,
        timeout_s=settings.openclaw_timeout,
        owned_by=settings.openclaw_node_name,
        endpoints=("chat",),
    )
    return (*nodes, openclaw)


def reachable_nodes(settings: Settings) -> tuple[NodeConfig, ...]:
    """Return the nodes that have an address: all but that of local models where its process does not run beside this one."""
    return tuple(node for node in all_nodes(settings) if node.base_url != LOCAL_URL)


def openclaw_id(settings: Settings) -> str | None:
    """Return the provider's id of the OpenClaw node, however it is called; None where there is none."""
    return NODE_PREFIX + settings.openclaw_node_name if settings.openclaw_enabled else None


def may_use_proxy(settings: Settings, target: str) -> bool:
    """Whether a connection may go through the environment's proxy; one to this machine never may.

    ``target`` is a URL or a gRPC target.
    """
    return settings.proxy_from_environment and not _is_local(target)


def _is_local(target: str) -> bool:
    scheme, mark, rest = target.partition(":")
    if scheme == "unix":
        return True
    if mark and scheme in {"dns", "ipv4", "ipv6"} and not rest.isdigit():
        target = rest.removeprefix("///")
    try:
        host = urlsplit(target if "://" in target else f"//{target}").hostname or ""
    except ValueError:
        return False
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
