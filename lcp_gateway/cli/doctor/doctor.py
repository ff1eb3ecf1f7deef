"""``lcp-gateway doctor``: each thing that a first answer needs, tried in order, with advice where it fails."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import typer

from lcp_gateway.cli.doctor.findings import Finding, journal_finding, node_findings
from lcp_gateway.cli.doctor.lnd import identity_finding, lnd_findings
from lcp_gateway.cli.lnd import invoice_network
from lcp_gateway.cli.market.providers import (
    daemon_advice,
    describe_daemon_error,
    opened_daemon,
    opened_nodes,
    retry_until_up,
)
from lcp_gateway.cli.market.quote import QuoteCheck, check_all
from lcp_gateway.cli.market.requests import first_servable
from lcp_gateway.cli.options import GroupedHelp, command_app, load_settings, setting_flags
from lcp_gateway.cli.output import RUNTIME_ERROR, USAGE_ERROR, CommandFailed, printable
from lcp_gateway.cli.serve.embedded import daemon_for
from lcp_gateway.config import (
    Settings,
    spending_cautions,
)
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.money import Msat, format_sat
from lcp_gateway.purchase.order import Task
from lcp_gateway.purchase.quote import Quote
from lcp_gateway.routing.catalog import Catalog, Provider
from lcp_gateway.upstreams.lcpd.adapter import LcpdUpstream, UnsupportedVersion

_SHORT_ID_CHARACTERS = 16
_NAME_COLUMNS = 14

app = command_app()


@app.command(cls=GroupedHelp)
@setting_flags()
def doctor(config: Path | None, flags: Mapping[str, object]) -> int:
    """Check configuration, journal, lnd, nodes, daemon, peers and one quote, which is not paid. Takes the flags of `serve`."""
    try:
        loaded = load_settings(flags, config)
    except CommandFailed as error:
        for line in error.lines:
            _print(Finding("configuration", False, line))
        return USAGE_ERROR
    _print(
        Finding("configuration", True, str(loaded.config_file or "no file; environment and flags"))
    )
    for warning in (*loaded.warnings, *spending_cautions(loaded.settings)):
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
    for line in finding.advice.splitlines():
        typer.echo(f"      {'':{_NAME_COLUMNS}} {line}")


async def _findings(settings: Settings) -> AsyncIterator[Finding]:
    """Try one thing after the other, and stop where the next would make no sense."""
    yield await journal_finding(settings)
    async for finding in lnd_findings(settings):
        yield finding
    nodes: tuple[Provider, ...] = ()
    async with opened_nodes(settings) as parts:
        if parts is not None:
            await parts.watch.refresh()
            nodes = parts.watch.providers
            for finding in node_findings(settings, parts.watch.states):
                yield finding
    async for finding in _daemon(settings, nodes):
        yield finding


async def _daemon(settings: Settings, nodes: Sequence[Provider]) -> AsyncIterator[Finding]:
    """Examine the daemon and its peers; ``nodes`` are those that are up."""
    target = settings.lcpd_grpc_addr
    try:
        async with opened_daemon(settings) as upstream:
            try:
                info = await retry_until_up(settings, upstream.local_info)
            except UnsupportedVersion as error:
                yield Finding("daemon", True, target)
                yield Finding("version", False, error.message, "update the older of the two")
                return
            except UpstreamError as error:
                yield Finding(
                    "daemon",
                    False,
                    describe_daemon_error(error, settings),
                    daemon_advice(error, settings),
                )
                return
            yield Finding(
                "daemon",
                True,
                f"{target}, node {_short(info.node_id)}, transport {upstream.transport}",
            )
            yield Finding("version", True, f"LCP protocol version {info.protocol_version}")
            if finding := await identity_finding(settings, info.node_id):
                yield finding
            async for finding in _market(upstream, settings, nodes):
                yield finding
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        yield Finding("daemon", False, f"cannot read{where}: {error.strerror}", "see lcpd_tls_*")


async def _market(
    upstream: LcpdUpstream, settings: Settings, nodes: Sequence[Provider]
) -> AsyncIterator[Finding]:
    try:
        providers = await upstream.list_peers(settings.preflight_timeout_s)
    except UpstreamError as error:
        yield Finding(
            "peers", False, describe_daemon_error(error, settings), daemon_advice(error, settings)
        )
        return
    peers = Catalog(providers=providers, taken_at=time.monotonic())
    names = sorted(peers.models())
    if providers:
        yield Finding("peers", True, f"{len(providers)} ready, {len(names)} models: {_some(names)}")
    else:
        yield Finding(
            "peers",
            False,
            "none are connected and ready",
            "connect lnd to a peer that speaks LCP; a daemon just started may need a minute",
        )
        if not nodes:
            return
    together = Catalog(providers=(*providers, *nodes), taken_at=peers.taken_at)
    missing = _unready(together, settings)
    if missing:
        yield Finding(
            "routing",
            False,
            f"not ready: {_some(missing)}",
            "requests for it fail: connect it, or change model_map and default_peer_id",
        )
    async for finding in _price(upstream, peers, together, settings):
        yield finding


async def _price(
    upstream: LcpdUpstream, peers: Catalog, together: Catalog, settings: Settings
) -> AsyncIterator[Finding]:
    """Ask a peer for the price of a word or two, which pays nothing; where only nodes serve, report a list price."""
    found = first_servable(peers, settings)
    if found is not None:
        task, (provider, *_) = found
        async for finding in _quote(upstream, task, provider, settings):
            yield finding
        return
    found = first_servable(together, settings)
    if found is None:
        advised = "see model_allowlist, model_map and default_peer_id"
        yield Finding("quote", False, "no model can be asked for", advised)
        return
    task, (provider, *_) = found
    asks = provider.list_price_msat
    text = f"asks {format_sat(Msat(asks))} ({asks} msat)" if asks else "asks nothing"
    where = f"{printable(task.model)} at {provider.peer_id}"
    yield Finding("price list", True, f"{where} {text} for an ordinary request")


async def _quote(
    upstream: LcpdUpstream, task: Task, provider: Provider, settings: Settings
) -> AsyncIterator[Finding]:
    """Ask for a price; nothing is accepted, so nothing is paid."""
    where = f"{printable(task.model)} at {_short(provider.peer_id)}"
    try:
        quote = await upstream.request_quote(task, provider.peer_id, settings.timeout_quote_s)
    except UpstreamError as error:
        text = f"{where}: {printable(error.message)}"
        yield Finding("quote", False, text, daemon_advice(error, settings))
        return
    with contextlib.suppress(UpstreamError):
        await upstream.cancel(quote, "only a price was wanted", settings.cancel_timeout_s)
    text = (
        f"{where} asks {format_sat(quote.price_msat)} "
        f"({quote.price_msat} msat) for a very short request; nothing was paid"
    )
    limit_msat = settings.max_price_msat
    too_dear = bool(limit_msat) and quote.price_msat > limit_msat
    yield Finding(
        "quote",
        not too_dear,
        text,
        f"that is over max_price_msat ({limit_msat})" if too_dear else "",
    )
    yield await _proof(task, quote, settings)


async def _proof(task: Task, quote: Quote, settings: Settings) -> Finding:
    """Check the quote as the gateway does before it pays."""
    try:
        # Problems of lnd were reported already.
        network = await invoice_network(settings, warns=False)
    except CommandFailed:
        network = None
    checks = check_all(task, quote, datetime.now(UTC), network=network)
    wrong = [check.words for check in checks if check.ok is False]
    if wrong:
        text = "; ".join(wrong)
        return Finding("invoice", False, text, "the gateway refuses quotes of this peer")
    return Finding("invoice", True, f"terms and invoice hold{_network_words(checks)}")


def _network_words(checks: list[QuoteCheck]) -> str:
    open_ones = [check.words for check in checks if check.ok is None]
    return f"; network {open_ones[0]}" if open_ones else ""


def _short(peer_id: str) -> str:
    return (
        peer_id if len(peer_id) <= _SHORT_ID_CHARACTERS else peer_id[:_SHORT_ID_CHARACTERS] + "..."
    )


def _some(names: list[str], limit: int = 5) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(printable, names[:limit])) + rest


def _unready(catalog: Catalog, settings: Settings) -> list[str]:
    """List the providers that the settings send requests to and that are missing, in words."""
    named = [
        *((provider_id, f"for {model}") for model, provider_id in settings.model_map.items()),
        (settings.default_peer_id, "as the default peer"),
    ]
    return [
        f"{provider_id} {purpose}"
        for provider_id, purpose in named
        if provider_id and not catalog.peer(provider_id)
    ]
