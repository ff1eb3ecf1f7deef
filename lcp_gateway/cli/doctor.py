"""``lcp-gateway doctor``: each thing a first answer needs, tried in order, with a word on what to do about it."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import typer

from lcp_gateway.cli.daemon import advice, describe, once_up, opened
from lcp_gateway.cli.flags import load_or_complain, setting_flags
from lcp_gateway.cli.program import RUNTIME_ERROR, USAGE_ERROR, CommandFailed
from lcp_gateway.cli.serve import daemon_for
from lcp_gateway.config import Settings
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.money import format_sat
from lcp_gateway.purchase.task import Task, TaskKind
from lcp_gateway.routing.catalog import Catalog, Provider
from lcp_gateway.routing.choice import RoutingError, choose
from lcp_gateway.upstreams.lcpd import LcpdUpstream, UnsupportedVersion

_SHORT_ID_CHARACTERS = 16
_NAME_COLUMNS = 14

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; ``advice`` says what to do and is empty where nothing is wrong."""

    name: str
    ok: bool
    text: str
    advice: str = ""


@app.command()
@setting_flags()
def doctor(config: Path | None, flags: Mapping[str, object]) -> int:
    """Check configuration, daemon, version, peers and one quote, which is not paid. Takes the flags of `serve`."""
    try:
        loaded = load_or_complain(flags, config)
    except CommandFailed as error:
        for line in error.lines:
            _print(Finding("configuration", False, line))
        return USAGE_ERROR
    _print(
        Finding("configuration", True, str(loaded.config_file or "no file; environment and flags"))
    )
    for warning in loaded.warnings:
        typer.echo(f"warn  {'':{_NAME_COLUMNS}} {warning}")
    with daemon_for(loaded.settings) as settings:
        healthy = asyncio.run(_examine(settings))
    return 0 if healthy else RUNTIME_ERROR


async def _examine(settings: Settings) -> bool:
    healthy = True
    async for finding in _findings(settings):
        _print(finding)
        healthy = healthy and finding.ok
    return healthy


def _print(finding: Finding) -> None:
    mark = typer.style("ok  ", fg="green") if finding.ok else typer.style("fail", fg="red")
    typer.echo(f"{mark}  {finding.name:{_NAME_COLUMNS}} {finding.text}")
    if finding.advice:
        typer.echo(f"      {'':{_NAME_COLUMNS}} {finding.advice}")


async def _findings(settings: Settings) -> AsyncIterator[Finding]:
    """Try one thing after the other and stop where the next would make no sense."""
    target = settings.lcpd_grpc_addr
    try:
        async with opened(settings) as upstream:
            try:
                info = await once_up(settings, upstream.local_info)
            except UnsupportedVersion as error:
                yield Finding("daemon", True, target)
                yield Finding("version", False, error.message, "update the older of the two")
                return
            except UpstreamError as error:
                yield Finding("daemon", False, describe(error, settings), advice(error, settings))
                return
            yield Finding("daemon", True, f"{target}, node {_short(info.node_id)}")
            yield Finding("version", True, f"LCP protocol version {info.protocol_version}")
            async for finding in _market(upstream, settings):
                yield finding
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        yield Finding("daemon", False, f"cannot read{where}: {error.strerror}", "see lcpd_tls_*")


async def _market(upstream: LcpdUpstream, settings: Settings) -> AsyncIterator[Finding]:
    try:
        providers = await upstream.list_peers(settings.preflight_timeout_s)
    except UpstreamError as error:
        yield Finding("peers", False, describe(error, settings), advice(error, settings))
        return
    catalog = Catalog(providers=providers, taken_at=time.monotonic())
    names = sorted(catalog.models())
    if not providers:
        yield Finding(
            "peers",
            False,
            "none are connected and ready",
            "connect lnd to a peer that speaks LCP; a daemon just started may need a minute",
        )
        return
    yield Finding("peers", True, f"{len(providers)} ready, {len(names)} models: {_some(names)}")
    missing = _missing_peers(catalog, settings)
    if missing:
        yield Finding(
            "routing",
            False,
            f"not ready: {_some(missing)}",
            "requests for it fail: connect the peer, or change model_map and default_peer_id",
        )
    yield await _quote(upstream, catalog, settings)


def _missing_peers(catalog: Catalog, settings: Settings) -> list[str]:
    named = [
        f"{peer_id} for {model}"
        for model, peer_id in settings.model_map.items()
        if not catalog.peer(peer_id)
    ]
    default = settings.default_peer_id
    if default and not catalog.peer(default):
        named.append(f"{default} as the default peer")
    return named


async def _quote(upstream: LcpdUpstream, catalog: Catalog, settings: Settings) -> Finding:
    """Ask for a price for a word or two; nothing is accepted, so nothing is paid."""
    found = _first_task(catalog, settings)
    if found is None:
        return Finding(
            "quote",
            False,
            "no model can be asked for",
            "see model_allowlist, model_map and default_peer_id",
        )
    task, provider = found
    try:
        quote = await upstream.request_quote(task, provider.peer_id, settings.timeout_quote_s)
    except UpstreamError as error:
        return Finding(
            "quote",
            False,
            f"{task.model} at {_short(provider.peer_id)}: {error.message}",
            advice(error, settings),
        )
    with contextlib.suppress(UpstreamError):
        await upstream.cancel(quote, "only a price was wanted", settings.cancel_timeout_s)
    text = (
        f"{task.model} at {_short(provider.peer_id)} asks {format_sat(quote.price_msat)} "
        f"({quote.price_msat} msat) for a very short request; nothing was paid"
    )
    limit_msat = settings.max_price_msat
    if limit_msat and quote.price_msat > limit_msat:
        return Finding("quote", False, text, f"that is over max_price_msat ({limit_msat})")
    return Finding("quote", True, text)


def _first_task(catalog: Catalog, settings: Settings) -> tuple[Task, Provider] | None:
    """Find the first model that the gateway would serve, by its own rules."""
    from lcp_gateway.app import routing_rules  # noqa: PLC0415 - imports the whole gateway

    rules = routing_rules(settings)
    names = [*catalog.models(), *settings.model_map, *settings.model_allowlist]
    for model in dict.fromkeys(names):
        for kind in TaskKind:
            if catalog.models().get(model) and not catalog.offering(kind, model):
                continue
            task = Task(kind=kind, model=model, body=_tiny_request(kind, model), stream=False)
            with contextlib.suppress(RoutingError):
                return task, choose(catalog, task, rules)
    return None


def _tiny_request(kind: TaskKind, model: str) -> bytes:
    match kind:
        case TaskKind.CHAT_COMPLETIONS:
            content = [{"role": "user", "content": "Hello"}]
            request: dict[str, object] = {"model": model, "messages": content, "max_tokens": 16}
        case TaskKind.RESPONSES:
            request = {"model": model, "input": "Hello", "max_output_tokens": 16}
    return json.dumps(request).encode()


def _short(peer_id: str) -> str:
    return (
        peer_id if len(peer_id) <= _SHORT_ID_CHARACTERS else peer_id[:_SHORT_ID_CHARACTERS] + "..."
    )


def _some(names: list[str], limit: int = 5) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
