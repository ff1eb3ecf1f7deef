"""Checks across settings: contradictions are errors, odd combinations are warnings."""

from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import urlsplit

from lcp_gateway.config.addresses import JOURNAL_OFF, is_loopback, parse_host_port
from lcp_gateway.config.derived import all_nodes, auth_mode, console_problem, local_models, markups, worker_count
from lcp_gateway.config.nodes import LOCAL_NODE, LOCAL_URL, NodeConfig
from lcp_gateway.config.settings import Settings
from lcp_gateway.config.sources import Source, nearest, others_may_read
from lcp_gateway.constants import NODE_PREFIX
from lcp_gateway.purchase.money import PPM_PER_PERCENT, Markup, Msat, loss_range
from lcp_gateway.purchase.payment_evidence import MIN_HTLC_MSAT

DAEMON_FEE_LIMIT_SAT: Final = 10_000
"""The routing fee of one payment that lcpd-grpcd allows lnd, fixed in its source."""

_WHOLE_PERCENT = 100
_SHORT_KEY_CHARS = 16
_FILES = (
    "http_tls_cert",
    "http_tls_key",
    "lcpd_tls_ca",
    "lcpd_tls_cert",
    "lcpd_tls_key",
    "lnd_tls_cert",
    "lnd_macaroon_file",
    "lnd_invoice_macaroon_file",
    "lnd_withdrawal_macaroon_file",
    "node_peers_file",
    "join_token_file",
)
_WEIGHTS = (
    "routing_weight_availability",
    "routing_weight_speed",
    "routing_weight_delivery",
    "routing_weight_price",
    "routing_weight_fit",
)
_CAPS = ("max_price_msat", "max_total_msat", "budget_hour_msat", "budget_day_msat", "budget_month_msat")
_KEY_CAPS = ("key_budget_hour_msat", "key_budget_day_msat", "key_budget_month_msat")


def contradictions(settings: Settings, sources: Mapping[str, Source]) -> Iterator[str]:
    """Yield the problems of settings that are valid one by one and not together."""
    yield from _access_contradictions(settings, sources)
    yield from _console_contradictions(settings, sources)
    yield from _tls_contradictions(settings, sources)
    yield from _lnd_contradictions(settings, sources)
    yield from _node_contradictions(settings, sources)
    yield from _dialin_contradictions(settings, sources)
    for name in _FILES:
        path = getattr(settings, name)
        if path is not None and not path.is_file():
            yield f"{sources[name]}: no such file: {path}"
    if worker_count(settings) > 1 and settings.journal_url == JOURNAL_OFF:
        source = sources.get("workers") or sources["journal_url"]
        yield f"{source}: several workers need a journal, which journal_url turns off: it is what keeps them from paying twice"
    yield from _node_over_lnd_contradictions(settings, sources)
    if settings.embedded and settings.node_listen.endswith(":0"):
        yield f"{sources['node_listen']}: the embedded node needs a port of its own, not 0"
    if settings.peers_stale_s < settings.peers_refresh_s:
        source = sources.get("peers_stale_s") or sources["peers_refresh_s"]
        yield (
            f"{source}: peers_stale_s ({settings.peers_stale_s:g} s) must not be shorter than "
            f"peers_refresh_s ({settings.peers_refresh_s:g} s)"
        )
    if settings.quote_fanout > settings.quote_attempts:
        source = sources.get("quote_fanout") or sources["quote_attempts"]
        yield (
            f"{source}: quote_fanout ({settings.quote_fanout}) must not be more than "
            f"quote_attempts ({settings.quote_attempts})"
        )
    if not any(getattr(settings, name) for name in _WEIGHTS):
        source = next(sources[name] for name in _WEIGHTS if name in sources)
        yield f"{source}: all weights are 0: at least one must be above 0"


def _tls_contradictions(settings: Settings, sources: Mapping[str, Source]) -> Iterator[str]:
    tls = ("lcpd_tls_ca", "lcpd_tls_cert", "lcpd_tls_key", "lcpd_tls_server_name")
    if not settings.lcpd_tls:
        for name in tls:
            if getattr(settings, name):
                # The operator who names a certificate expects an encrypted connection.
                yield f"{sources[name]}: has no effect while lcpd_tls is false"
    if settings.lcpd_tls_cert and not settings.lcpd_tls_key:
        yield f"{sources['lcpd_tls_cert']}: a client certificate needs lcpd_tls_key too"
    if settings.lcpd_tls_key and not settings.lcpd_tls_cert:
        yield f"{sources['lcpd_tls_key']}: a client key needs lcpd_tls_cert too"
    if settings.http_tls_key and not settings.http_tls_cert:
        yield f"{sources['http_tls_key']}: a key without a certificate: set http_tls_cert too"


def _lnd_contradictions(settings: Settings, sources: Mapping[str, Source]) -> Iterator[str]:
    for name in ("lnd_tls_cert", "lnd_macaroon_file"):
        given = getattr(settings, name) is not None
        if given and not (settings.lnd_grpc_addr or (settings.lnd and name == "lnd_tls_cert")):
            yield f"{sources[name]}: has no effect without lnd_grpc_addr"
        if settings.lnd_grpc_addr and not given:
            yield f"{sources['lnd_grpc_addr']}: lnd is reached with {name} only, which is not set"
    if settings.lnd_withdrawal_macaroon_file is not None and not settings.lnd_grpc_addr:
        yield f"{sources['lnd_withdrawal_macaroon_file']}: has no effect without lnd_grpc_addr"


def _node_contradictions(settings: Settings, sources: Mapping[str, Source]) -> Iterator[str]:
    if settings.openclaw_enabled:
        if not settings.openclaw_base_url:
            yield f"{sources['openclaw_enabled']}: OpenClaw is reached at openclaw_base_url only, which is not set"
        if any(node.name == settings.openclaw_node_name for node in settings.nodes):
            source = sources.get("openclaw_node_name") or sources["openclaw_enabled"]
            yield f"{source}: a node is called {settings.openclaw_node_name!r} already"
    yield from _local_model_contradictions(settings, sources)
    for model, provider in settings.model_map.items():
        if problem := _unknown_node(provider, settings):
            yield f"{sources['model_map']}: the provider of model {model!r:.80}: {problem}"
    if problem := _unknown_node(settings.default_peer_id, settings):
        yield f"{sources['default_peer_id']}: {problem}"


def _dialin_contradictions(settings: Settings, sources: Mapping[str, Source]) -> Iterator[str]:
    taken = {node.name for node in all_nodes(settings)}
    for node in settings.dialin_nodes:
        if node.name in taken:
            yield f"{sources['dialin_nodes']}: a virtual node is called {node.name!r} already"
    if settings.dialin_accounts and auth_mode(settings) != "accounts":
        yield f'{sources["dialin_accounts"]}: nodes of accounts need auth = "accounts"'
    if settings.join_token and settings.join_token_file is not None:
        yield f"{sources['join_token_file']}: join_token and join_token_file exclude each other"
    if settings.join_backend and settings.join_backends:
        yield f"{sources['join_backends']}: join_backend and join_backends exclude each other"


def _local_model_contradictions(settings: Settings, sources: Mapping[str, Source]) -> Iterator[str]:
    for node in settings.nodes:
        if node.base_url == LOCAL_URL and not local_models(settings):
            yield f"{sources['nodes']}: node {node.name}: no model of [models] has a path or a hf_repo"
        if node.name == LOCAL_NODE and node.base_url != LOCAL_URL and local_models(settings):
            yield f"{sources['nodes']}: the node {LOCAL_NODE!r} serves the local models: give this one another name"
    for name, local in local_models(settings).items():
        if local.path and not local.path.is_file():
            yield f"{sources['models']}: models[{name!r:.80}].path: no such file: {local.path}"
    if settings.local_model and not settings.embedded:
        yield f"{sources['local_model']}: the small model answers behind the embedded node: set embedded too"


def _unknown_node(provider: str, settings: Settings) -> str:
    """Return the problem of a provider that is a missing node; empty for all others."""
    known = [*(node.name for node in all_nodes(settings)), *(node.name for node in settings.dialin_nodes)]
    name = provider.removeprefix(NODE_PREFIX)
    if name == provider or name in known:
        return ""
    return f"no node is called {name!r}{nearest(name, known)}"


def _access_contradictions(settings: Settings, sources: Mapping[str, Source]) -> Iterator[str]:
    mode = auth_mode(settings)
    local = is_loopback(parse_host_port(settings.http_addr).host)
    if mode == "none" and not local and not settings.allow_open:
        source = sources.get("http_addr") or "http_addr"
        yield (
            f"{source}: {settings.http_addr} can be reached by other machines, and any client there would spend your "
            "money: set api_keys or auth, or set allow_open"
        )
    if mode == "keys" and not settings.api_keys:
        yield f"{sources['auth']}: keys are required, and no api_keys are set"
    if mode == "none" and settings.api_keys:
        yield f"{sources['api_keys']}: has no effect while auth is none"
    if mode != "accounts":
        for name in ("admin_key", "l402", "withdrawals"):
            if getattr(settings, name):
                yield f"{sources[name]}: has no effect unless auth is accounts"
        return
    if settings.journal_url == JOURNAL_OFF:
        yield f"{sources['journal_url']}: accounts are kept in the journal's database, which is off"
    yield from _paying_out_contradictions(settings, sources)
    if settings.topup_min_msat > settings.topup_max_msat:
        source = sources.get("topup_min_msat") or sources["topup_max_msat"]
        yield f"{source}: topup_min_msat must not be more than topup_max_msat"
    elif settings.l402 and not settings.topup_min_msat <= settings.l402_msat <= settings.topup_max_msat:
        source = sources.get("l402_msat") or sources["l402"]
        yield f"{source}: l402_msat must be from topup_min_msat to topup_max_msat"


def _console_contradictions(settings: Settings, sources: Mapping[str, Source]) -> Iterator[str]:
    problem = console_problem(settings)
    if settings.console == "on" and problem:
        yield f"{sources['console']}: the console cannot be served: {problem}"
    if settings.registration == "closed":
        return
    if auth_mode(settings) != "accounts":
        yield f"{sources['registration']}: has no effect unless auth is accounts"
    elif settings.console == "off":
        yield f"{sources['registration']}: no account can be opened while console is off"


def _node_over_lnd_contradictions(settings: Settings, sources: Mapping[str, Source]) -> Iterator[str]:
    if not settings.lnd:
        for name in ("lnd_node_macaroon_file", "node_config"):
            if getattr(settings, name) is not None:
                yield f"{sources[name]}: is for the node over lnd: set lnd too"
        return
    if settings.embedded:
        yield f"{sources['lnd']}: either the node over lnd or the embedded one: leave lnd or embedded out"
    if worker_count(settings) > 1:
        yield (
            f"{sources['lnd']}: the node runs in the gateway's one process, and workers are several: set workers = 1, or run "
            "`lcp-gateway node --lnd` beside the gateway and name it in lcpd_grpc_addr"
        )
    if settings.lnd_tls_cert is None:
        yield f"{sources['lnd']}: lnd speaks TLS: set lnd_tls_cert"


def _paying_out_contradictions(settings: Settings, sources: Mapping[str, Source]) -> Iterator[str]:
    if settings.node_commission_percent > _WHOLE_PERCENT:
        yield f"{sources['node_commission_percent']}: a commission is at most 100 percent"
    if settings.withdrawals and not (settings.embedded or settings.lnd_withdrawal_macaroon_file):
        yield f"{sources['withdrawals']}: withdrawals are paid by lnd with lnd_withdrawal_macaroon_file, which is not set"
    if settings.withdrawal_max_msat and settings.withdrawal_min_msat > settings.withdrawal_max_msat:
        source = sources.get("withdrawal_min_msat") or sources["withdrawal_max_msat"]
        yield f"{source}: withdrawal_min_msat must not be more than withdrawal_max_msat"


def setting_warnings(settings: Settings, sources: Mapping[str, Source]) -> Iterator[str]:
    """Yield warnings about settings that are valid and most likely not intended."""
    if settings.allow_open and auth_mode(settings) == "none" and not settings.embedded:
        by_name = "" if settings.allowed_hosts else ". Clients reach it by a name once allowed_hosts has it"
        yield (
            f"{sources['allow_open']}: {settings.http_addr} serves every client: any that reaches it spends your money{by_name}"
        )
    yield from _page_warnings(settings, sources)
    is_behind_proxy = is_loopback(parse_host_port(settings.http_addr).host) and not settings.embedded
    if settings.l402 and is_behind_proxy and not settings.trusted_proxies:
        yield (
            f"{sources['l402']}: on {settings.http_addr} all clients come through a proxy and seem to have one address, so "
            "that they share l402_invoices_per_minute: set trusted_proxies"
        )
    if auth_mode(settings) == "accounts" and not (settings.embedded or settings.lnd_grpc_addr):
        yield "customers cannot top up: lnd_grpc_addr is not set"
    yield from _console_warnings(settings, sources)
    macaroon = settings.lnd_withdrawal_macaroon_file
    if macaroon is not None and macaroon.is_file() and others_may_read(macaroon):
        yield f"{macaroon} can spend and other users may read it: chmod 600"
    yield from _markup_warnings(settings)
    yield from _https_warnings(settings)
    if (settings.embedded or settings.lnd) and "lcpd_grpc_addr" in sources:
        used = "the embedded node" if settings.embedded else "the node over lnd"
        yield f"{sources['lcpd_grpc_addr']} has no effect: {used} is used"
    if settings.journal_url == JOURNAL_OFF:
        yield (
            f"{sources['journal_url']}: no journal is kept: payments are forgotten when the gateway stops, "
            "budgets count from its start, and no unknown payment is ever resolved"
        )
    if settings.embedded and settings.journal_url not in {"", JOURNAL_OFF}:
        yield (
            f"{sources['journal_url']}: the embedded node's play money is written into this journal; "
            "keep it apart from one of real payments"
        )
    if settings.embedded and settings.lnd_grpc_addr:
        yield f"{sources['lnd_grpc_addr']}: lnd knows nothing of the embedded node's payments"
    for node in all_nodes(settings):
        yield from _node_warnings(node)


def _markup_warnings(settings: Settings) -> Iterator[str]:
    """Yield mark-ups that do not cover the estimated routing fee, so that the operator loses with each purchase."""
    if auth_mode(settings) != "accounts" or settings.embedded:
        return
    marked_up = markups(settings)
    if not settings.lnd_grpc_addr and not any(map(any, marked_up.values())):
        # Customers cannot top up yet, which is a warning of its own.
        return
    for name, (percent, fixed_msat) in marked_up.items():
        markup = Markup(round(percent * PPM_PER_PERCENT), Msat(fixed_msat))
        losses = loss_range(markup, settings.fee_ppm, settings.fee_base_msat)
        if losses is None or (losses.below_msat is not None and losses.below_msat <= MIN_HTLC_MSAT):
            # No payment can be as small as such a price.
            continue
        if losses.below_msat is not None:
            where = f"at prices below {losses.below_msat:,} msat"
        elif losses.from_msat:
            where = f"at prices over {losses.from_msat:,} msat"
        else:
            where = "at any price"
        of_model = f" of model {name!r:.80}" if name else ""
        yield (
            f"the mark-up{of_model} ({percent:g}% and {fixed_msat:,} msat) does not cover the estimated routing fee "
            f"({settings.fee_ppm / PPM_PER_PERCENT:g}% and {settings.fee_base_msat:,} msat) {where}: each such purchase "
            "from a Lightning peer is a loss. Raise markup_msat to fee_base_msat and markup_percent to fee_ppm / 10,000, "
            "or lower the estimate where lnd's fees are lower"
        )


def _page_warnings(settings: Settings, sources: Mapping[str, Source]) -> Iterator[str]:
    """Yield settings that let web pages spend."""
    if auth_mode(settings) != "none":
        return
    if "*" in settings.cors_origins:
        yield (
            f"{sources['cors_origins']}: every web page that a user of this gateway opens may spend your money: name the "
            "origins, or set api_keys"
        )
    if "*" in settings.allowed_hosts:
        yield (
            f"{sources['allowed_hosts']}: a web page whose name is made to lead to this address may spend your money: name "
            "the hosts, or set api_keys"
        )


def _console_warnings(settings: Settings, sources: Mapping[str, Source]) -> Iterator[str]:
    if settings.console_insecure and settings.console != "off":
        yield (
            f"{sources['console_insecure']}: keys that are typed into the console travel unencrypted: set http_tls_cert, or "
            "trusted_proxies where a proxy in front of it speaks https"
        )
    if 0 < len(settings.admin_key) < _SHORT_KEY_CHARS and not settings.embedded:
        yield (
            f"{sources['admin_key']}: admin_key has fewer than {_SHORT_KEY_CHARS} characters and could be guessed: make a "
            "random one, as with `openssl rand -hex 32`"
        )
    is_behind_proxy = is_loopback(parse_host_port(settings.http_addr).host) and not settings.embedded
    if settings.registration == "open" and is_behind_proxy and not settings.trusted_proxies:
        yield (
            f"{sources['registration']}: on {settings.http_addr} all clients come through a proxy and seem to have one address, "
            "so that they share 5 new accounts an hour: set trusted_proxies"
        )


def _https_warnings(settings: Settings) -> Iterator[str]:
    key = settings.http_tls_key or settings.http_tls_cert
    if key and others_may_read(key):
        yield f"{key} holds the certificate's key and other users may read it: chmod 600"
    local = is_loopback(parse_host_port(settings.http_addr).host)
    plain = settings.http_tls_cert is None and not settings.trusted_proxies
    if auth_mode(settings) != "none" and plain and not local:
        yield (
            f"{settings.http_addr} can be reached by other machines, and keys travel to it unencrypted: set http_tls_cert, "
            "or trusted_proxies where a proxy in front of it speaks https"
        )


def _node_warnings(node: NodeConfig) -> Iterator[str]:
    url = urlsplit(node.base_url)
    if node.api_key and url.scheme == "http" and not is_loopback(url.hostname or ""):
        yield f"the key of node {node.name} travels unencrypted: {node.base_url} is not https"
    if node.api_key_file and others_may_read(node.api_key_file):
        yield f"{node.api_key_file} holds a secret and other users may read it: chmod 600"


def spending_warnings(settings: Settings) -> tuple[str, ...]:
    """Return the limits of spending, or that there are none; nothing where no real money moves.

    Apart from ``setting_warnings``, since these are no mistakes: ``serve`` and ``doctor`` print them, ``config check`` does not.
    """
    if settings.embedded:
        return ()
    found = []
    # A budget of each key is a limit only where there are keys.
    caps = _CAPS + (_KEY_CAPS if settings.api_keys else ())
    if not any(getattr(settings, name) for name in caps):
        found.append(
            "no limit on spending is set: a request may cost any price that a peer asks. "
            "See max_total_msat and budget_day_msat"
        )
    return tuple(found)


def fee_warnings(settings: Settings, *, limits_fees: bool) -> tuple[str, ...]:
    """Return the limit on routing fees of a daemon that keeps to none of the operator's; ``limits_fees`` for one that does."""
    if settings.embedded or limits_fees:
        return ()
    warning = (
        f"the daemon pays routing fees of up to {DAEMON_FEE_LIMIT_SAT:,} sat a payment, a fixed limit of its own; "
        f"the estimate is {settings.fee_ppm / PPM_PER_PERCENT:g}% and {settings.fee_base_msat} msat"
    )
    return (warning,)
