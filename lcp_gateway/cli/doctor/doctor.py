"""``lcp-gateway doctor``: everything that a first answer needs, checked in order, with advice where a check fails."""

import asyncio
import contextlib
import importlib.util
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from lcp_gateway.accounts.withdrawal_states import WithdrawalState
from lcp_gateway.accounts.withdrawals import OpenWithdrawals
from lcp_gateway.cli.books.journal import journal_file, opened_journal
from lcp_gateway.cli.doctor.lnd import examine_identity, examine_lnd
from lcp_gateway.cli.doctor.report import Report
from lcp_gateway.cli.lnd import invoice_network
from lcp_gateway.cli.market.providers import (
    daemon_advice,
    describe_daemon_error,
    opened_daemon,
    opened_nodes,
    retry_until_up,
)
from lcp_gateway.cli.market.quote import check_all
from lcp_gateway.cli.market.requests import first_servable
from lcp_gateway.cli.options import GroupedHelp, command_app, load_settings, setting_flags
from lcp_gateway.cli.output import RUNTIME_ERROR, USAGE_ERROR, CommandFailed, printable
from lcp_gateway.cli.serve.embedded import daemon_for
from lcp_gateway.config import (
    NodeConfig,
    Settings,
    auth_mode,
    console_problem,
    fee_warnings,
    journal_place,
    local_models,
    reachable_nodes,
    serves_console,
    spending_warnings,
    without_password,
    worker_count,
)
from lcp_gateway.local_models.options import NOT_INSTALLED
from lcp_gateway.local_models.small_model import SMALL_MODEL
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.money import Msat, format_sat
from lcp_gateway.purchase.order import Task
from lcp_gateway.purchase.quote import Quote
from lcp_gateway.routing.catalog import Catalog, Provider
from lcp_gateway.store.accounts.withdrawals import Withdrawals
from lcp_gateway.store.database.engines import DatabaseUnavailable
from lcp_gateway.store.database.schema import HEAD
from lcp_gateway.store.journal.queries import Books
from lcp_gateway.upstreams.lcpd.adapter import LcpdUpstream
from lcp_gateway.upstreams.lcpd.dialect import UnsupportedVersion
from lcp_gateway.upstreams.openai.node_watch import NodeState

_SHORT_ID_CHARACTERS = 16

app = command_app()


@app.command(cls=GroupedHelp)
@setting_flags()
def doctor(config: Path | None, flags: Mapping[str, object]) -> int:
    """Check configuration, journal, lnd, nodes, daemon, peers and one quote, which is not paid. Takes the flags of `serve`."""
    report = Report()
    try:
        loaded = load_settings(flags, config)
    except CommandFailed as error:
        for line in error.lines:
            report.fail("configuration", line)
        return USAGE_ERROR
    report.ok("configuration", str(loaded.config_file or "no file; environment and flags"))
    for warning in (*loaded.warnings, *spending_warnings(loaded.settings)):
        report.warn(warning)
    _examine_workers(report, loaded.settings)
    _examine_console(report, loaded.settings)
    _examine_local_models(report, loaded.settings)
    with daemon_for(loaded.settings) as settings:
        asyncio.run(_examine(report, settings))
    return 0 if report.healthy else RUNTIME_ERROR


def _examine_workers(report: Report, settings: Settings) -> None:
    """Check that several workers have what they share their state in."""
    count = worker_count(settings)
    if count == 1:
        return
    advice = "pip install 'lcp-gateway[redis]', or use workers = 1"
    if importlib.util.find_spec("redis") is None or importlib.util.find_spec("cryptography") is None:
        report.fail("workers", f"{count}: the extra for their Redis is not installed", advice)
        return
    from lcp_gateway.supervisor.private_redis import RedisMissing, find_server  # noqa: PLC0415 - for several workers only

    if settings.redis_url:
        report.ok("workers", f"{count}, with the Redis of redis_url")
        return
    try:
        report.ok("workers", f"{count}, with a private Redis: {find_server()}")
    except RedisMissing as error:
        problem, _, remedy = str(error).partition(": ")
        report.fail("workers", f"{count}: {problem}", remedy)


def _examine_console(report: Report, settings: Settings) -> None:
    """Report whether the web console is served, and from where users sign in."""
    if not serves_console(settings):
        report.ok("console", f"not served: {console_problem(settings) or 'console is off'}")
        return
    mode = auth_mode(settings)
    sign_in = {
        "none": "no sign-in on this machine",
        "keys": "sign-in with one of api_keys",
        "accounts": f"sign-in with a key, registration {settings.registration}",
    }[mode]
    is_plain = settings.http_tls_cert is None and not settings.trusted_proxies and not settings.console_insecure
    advice = ""
    if mode != "none" and is_plain:
        advice = "from other machines keys are taken over https only: set http_tls_cert, or trusted_proxies"
    report.ok("console", f"/console/ on {settings.http_addr}; {sign_in}", advice)


def _examine_local_models(report: Report, settings: Settings) -> None:
    """Check that local models have the program that runs them."""
    models = [*local_models(settings), *([SMALL_MODEL] if settings.local_model else [])]
    if not models:
        return
    if found := shutil.which(settings.llama_server):
        report.ok("local models", f"{len(models)}, with {found}")
        return
    problem, _, remedy = NOT_INSTALLED.format(executable=settings.llama_server).partition(". ")
    report.fail("local models", problem, remedy)


async def _examine(report: Report, settings: Settings) -> None:
    """Run one check after the other, and stop where the next depends on one that failed."""
    await _examine_journal(report, settings)
    await examine_lnd(report, settings)
    nodes: tuple[Provider, ...] = ()
    async with opened_nodes(settings) as parts:
        if parts is not None:
            await parts.watch.refresh()
            nodes = parts.watch.providers
            _examine_nodes(report, settings, parts.watch.states)
    await _examine_daemon(report, settings, nodes)


async def _examine_journal(report: Report, settings: Settings) -> None:
    """Open the journal and count the unknown purchases in it; one that does not exist yet is not made."""
    place = journal_place(settings)
    if place is None:
        return report.ok("journal", "off: no purchase is recorded")
    path = journal_file(place)
    if path is not None and not path.exists():
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
            return report.ok("journal", f"{path} is made at the first start")
        return report.fail("journal", f"{path} cannot be made", f"{folder} cannot be written")
    try:
        async with opened_journal(settings) as database:
            open_now = await Books(database).outstanding()
            replaced = database.replaced
            waiting = await Withdrawals(database).outstanding() if auth_mode(settings) == "accounts" else None
    except CommandFailed as error:
        return report.fail("journal", str(error), "no gateway pays while it cannot write there")
    except DatabaseUnavailable as error:
        return report.fail("journal", error.reason, "see journal_url")
    if replaced is not None:
        problem, _, remedy = replaced.partition(". ")
        return report.fail("journal", problem, remedy)
    text, advice = f"{without_password(str(place))}, version {HEAD}", ""
    if open_now.unknown:
        text += f"; {open_now.unknown} unknown ({format_sat(open_now.unknown_msat)})"
        advice = "lnd resolves them if it is configured, or a node of lcp-gateway; else: purchases resolve"
    report.ok("journal", text, advice)
    if waiting is not None:
        _examine_withdrawals(report, settings, waiting)
    return None


def _examine_withdrawals(report: Report, settings: Settings, waiting: OpenWithdrawals) -> None:
    """Report whether customers can withdraw, and which withdrawals wait for the operator or are unknown."""
    text = "on" if settings.withdrawals else "off"
    for state, (count, held_msat) in waiting.counts.items():
        text += f"; {count} {state} ({format_sat(Msat(held_msat))})"
    if WithdrawalState.UNKNOWN in waiting.counts:
        advice = "the lnd that paid tells their outcome (lnd_withdrawal_macaroon_file); else: withdrawals resolve"
    elif WithdrawalState.AWAITING_APPROVAL in waiting.counts:
        advice = "they wait for you: withdrawals approve, or deny"
    else:
        advice = ""
    report.ok("withdrawals", text, advice)


def _examine_nodes(report: Report, settings: Settings, states: Mapping[str, NodeState]) -> None:
    for node in reachable_nodes(settings):
        state = states[node.name]
        if not state.up:
            text = f"{node.name}: {printable(state.problem)}"
            report.fail("node", text, _node_advice(state.problem, node))
        elif not state.models:
            advice = "load a model there, or name some in its models"
            report.fail("node", f"{node.name}: up, and offers no models", advice)
        else:
            report.ok("node", f"{node.name}: up, {state.models} models")


def _node_advice(problem: str, node: NodeConfig) -> str:
    if "credentials" in problem:
        return "set its api_key to the one that it asks for"
    if "list of models" in problem:
        return "name its models in the configuration, or check its base_url"
    return f"is it running at {node.base_url}?"


async def _examine_daemon(report: Report, settings: Settings, nodes: Sequence[Provider]) -> None:
    """Examine the daemon and its peers; ``nodes`` are those that are up."""
    target = settings.lcpd_grpc_addr
    try:
        async with opened_daemon(settings) as upstream:
            try:
                info = await retry_until_up(settings, upstream.local_info)
            except UnsupportedVersion as error:
                report.ok("daemon", target)
                report.fail("version", error.message, "update the older of the two")
                return
            except UpstreamError as error:
                _fail(report, "daemon", error, settings)
                return
            where = f"{target}, node {_short(info.node_id)}, transport {upstream.transport}"
            report.ok("daemon", where)
            report.ok("version", f"LCP protocol version {info.protocol_version}")
            for warning in fee_warnings(settings, limits_fees=info.software.limits_fees):
                report.warn(warning)
            await examine_identity(report, settings, info.node_id)
            await _examine_peers(report, upstream, settings, nodes)
    except OSError as error:
        file = f" {error.filename}" if error.filename else ""
        report.fail("daemon", f"cannot read{file}: {error.strerror}", "see lcpd_tls_*")


async def _examine_peers(report: Report, upstream: LcpdUpstream, settings: Settings, nodes: Sequence[Provider]) -> None:
    try:
        providers = await upstream.list_peers(settings.preflight_timeout_s)
    except UpstreamError as error:
        _fail(report, "peers", error, settings)
        return
    peers = Catalog(providers=providers, taken_at=time.monotonic())
    names = sorted(peers.models())
    if providers:
        silent = sum(bool(provider.open_kinds) for provider in providers)
        without = f"; {silent} of them list none (see peer_models)" if silent else ""
        report.ok("peers", f"{len(providers)} ready, {len(names)} models{': ' if names else ''}{_some(names)}{without}")
    else:
        report.fail(
            "peers",
            "none are connected and ready",
            "connect lnd to a peer that speaks LCP; a daemon just started may need a minute",
        )
        if not nodes:
            return
    together = Catalog(providers=(*providers, *nodes), taken_at=peers.taken_at)
    if missing := _missing_providers(together, settings):
        report.fail(
            "routing",
            f"not ready: {_some(missing)}",
            "requests for it fail: connect it, or change model_map and default_peer_id",
        )
    # A price for a word or two is asked of a peer, which pays nothing; where only nodes serve, one has a list price.
    if (found := first_servable(peers, settings)) is not None:
        task, (provider, *_) = found
        await _examine_quote(report, upstream, task, provider, settings)
    elif (found := first_servable(together, settings)) is not None:
        task, (provider, *_) = found
        asks = provider.list_price_msat
        text = f"asks {format_sat(Msat(asks))} ({asks} msat)" if asks else "asks nothing"
        where = f"{printable(task.model)} at {provider.peer_id}"
        report.ok("price list", f"{where} {text} for an ordinary request")
    elif any(provider.open_kinds for provider in providers):
        report.ok("quote", "not asked for: the peers list no models", "name one in peer_models or model_map")
    else:
        advice = "see model_allowlist, model_map and default_peer_id"
        report.fail("quote", "no model can be asked for", advice)


async def _examine_quote(
    report: Report, upstream: LcpdUpstream, task: Task, provider: Provider, settings: Settings
) -> None:
    """Ask for a price and check the quote; nothing is accepted, so nothing is paid."""
    where = f"{printable(task.model)} at {_short(provider.peer_id)}"
    try:
        quote = await upstream.request_quote(task, provider.peer_id, settings.timeout_quote_s)
    except UpstreamError as error:
        text = f"{where}: {printable(error.message)}"
        report.fail("quote", text, daemon_advice(error, settings))
        return
    with contextlib.suppress(UpstreamError):
        await upstream.cancel(quote, "only a price was wanted", settings.cancel_timeout_s)
    text = (
        f"{where} asks {format_sat(quote.price_msat)} "
        f"({quote.price_msat} msat) for a very short request; nothing was paid"
    )
    limit_msat = settings.max_price_msat
    if limit_msat and quote.price_msat > limit_msat:
        report.fail("quote", text, f"that is over max_price_msat ({limit_msat})")
    else:
        report.ok("quote", text)
    await _examine_invoice(report, task, quote, settings)


async def _examine_invoice(report: Report, task: Task, quote: Quote, settings: Settings) -> None:
    """Check the quote as the gateway does before it pays."""
    try:
        # Problems of lnd were reported already.
        network = await invoice_network(settings, warns=False)
    except CommandFailed:
        network = None
    checks = check_all(task, quote, datetime.now(UTC), network=network)
    if wrong := [check.words for check in checks if check.ok is False]:
        report.fail("invoice", "; ".join(wrong), "the gateway refuses quotes of this peer")
        return
    open_ones = [check.words for check in checks if check.ok is None]
    more = f"; network {open_ones[0]}" if open_ones else ""
    report.ok("invoice", f"terms and invoice hold{more}")


def _fail(report: Report, name: str, error: UpstreamError, settings: Settings) -> None:
    report.fail(name, describe_daemon_error(error, settings), daemon_advice(error, settings))


def _missing_providers(catalog: Catalog, settings: Settings) -> list[str]:
    """List the providers that the settings send requests to and that are missing, in words."""
    named = [
        *((provider_id, f"for {model}") for model, provider_id in settings.model_map.items()),
        (settings.default_peer_id, "as the default peer"),
    ]
    return [
        f"{provider_id} {purpose}" for provider_id, purpose in named if provider_id and not catalog.peer(provider_id)
    ]


def _short(peer_id: str) -> str:
    is_short = len(peer_id) <= _SHORT_ID_CHARACTERS
    return peer_id if is_short else f"{peer_id[:_SHORT_ID_CHARACTERS]}..."


def _some(names: list[str], limit: int = 5) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(printable, names[:limit])) + rest
