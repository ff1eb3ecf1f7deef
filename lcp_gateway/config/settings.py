"""The settings: one flat model in which a setting is one entry, from its type to its place in the docs."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from lcp_gateway.config import parsers
from lcp_gateway.config.models import Models
from lcp_gateway.config.nodes import Nodes, OpenClawUrl
from lcp_gateway.config.parsers import Form, parse_text, read_by
from lcp_gateway.config.setting import OPENAI_SERVE_PREFIX, OPENCLAW_PREFIX, Group, Spec, setting


class MarketSettings(BaseSettings):
    """One part of ``Settings``, which see."""

    default_peer_id: parsers.OptionalProvider = setting(
        "",
        "The provider for models that `model_map` does not name: a peer's id, or `node:NAME`.",
        Group.ROUTING,
        openai_serve="DEFAULT_PEER_ID",
    )
    model_map: parsers.ModelMap = setting(
        {},
        'Which provider serves which model: a table, or "model=provider;model=provider".',
        Group.ROUTING,
        openai_serve="MODEL_MAP",
    )
    model_allowlist: parsers.Names = setting(
        (),
        "The only models that may be asked for. All that providers advertise when empty.",
        Group.ROUTING,
        openai_serve="MODEL_ALLOWLIST",
    )
    allow_unlisted_models: parsers.Switch = setting(
        False,
        "Let models through that no provider advertises.",
        Group.ROUTING,
        openai_serve="ALLOW_UNLISTED_MODELS",
    )

    explicit_choice: parsers.Choice = setting(
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
    nodes_refresh_s: parsers.Duration = setting(
        15.0,
        "How often nodes are asked whether they are there, and for their models.",
        Group.ROUTING,
        gt=0,
    )

    openclaw_enabled: parsers.Switch = setting(
        False, "Take an OpenClaw instance in as a node.", Group.ROUTING, openclaw="ENABLED"
    )
    openclaw_base_url: OpenClawUrl = setting(
        "", "Where it is, for example `http://127.0.0.1:3000`.", Group.ROUTING, openclaw="BASE_URL"
    )
    openclaw_api_key: parsers.BearerKey = setting(
        "", "The key that it asks for, if any.", Group.ROUTING, openclaw="API_KEY", secret=True
    )
    openclaw_node_name: parsers.NodeName = setting(
        "OpenClaw",
        "The node's name, and the owner of its models.",
        Group.ROUTING,
        openclaw="NODE_NAME",
    )
    openclaw_price: parsers.Number = setting(
        0.0, "Its price in sat a minute of use; 0 is free.", Group.ROUTING, openclaw="PRICE"
    )
    openclaw_timeout: parsers.Duration = setting(
        120.0, "How long a request to it may take.", Group.ROUTING, openclaw="TIMEOUT", gt=0
    )

    routing_weight_availability: parsers.Number = setting(
        0.15,
        "How much it counts that a provider is there, where the choice is left to the gateway. Only the proportions of "
        "the five weights matter.",
        Group.ROUTING,
    )
    routing_weight_speed: parsers.Number = setting(
        0.30, "The same for its measured speed.", Group.ROUTING
    )
    routing_weight_delivery: parsers.Number = setting(
        0.25, "The same for how much of what it was asked for came.", Group.ROUTING
    )
    routing_weight_price: parsers.Number = setting(0.20, "The same for its price.", Group.ROUTING)
    routing_weight_fit: parsers.Number = setting(
        0.10, "The same for how well the model fits the request.", Group.ROUTING
    )
    routing_temperature: parsers.Number = setting(
        0.05, "How far the choice strays from the best score; small is strict.", Group.ROUTING, gt=0
    )
    routing_half_life_s: parsers.Duration = setting(
        300.0, "The age at which a measurement counts half.", Group.ROUTING, gt=0
    )


class MoneySettings(BaseSettings):
    """One part of ``Settings``, which see."""

    journal_url: parsers.Journal = setting(
        "",
        "Where every purchase is written down before it is paid: the path of a SQLite file, a `postgresql://` URL "
        "(needs lcp-gateway[postgres]), or `off`. When empty: `lcp-gateway/journal.db` in `$XDG_STATE_HOME` "
        "(`~/.local/state`), and `embedded.db` beside it with `embedded`, so that play money never mixes with real. "
        "A password in the URL is never shown, and is refused on the command line.",
        Group.MONEY,
        may_hold_password=True,
    )
    network: parsers.Network = setting(
        "",
        "The network whose invoices are paid: mainnet, testnet, testnet4, signet, regtest or simnet, or the prefix of "
        "its invoices, as which it is kept. When empty, what lnd says; without lnd, any.",
        Group.MONEY,
    )
    max_price_msat: parsers.Count = setting(
        0,
        "The most that one request may be priced at, in millisatoshi and without the routing fee; 0 sets no limit.",
        Group.MONEY,
        openai_serve="MAX_PRICE_MSAT",
    )
    max_total_msat: parsers.Count = setting(
        0,
        "The most that one request may cost, price and reckoned routing fee together; 0 sets no limit.",
        Group.MONEY,
    )
    model_max_total_msat: parsers.ModelLimits = setting(
        {},
        'The same by model: a table, or "model=msat;model=msat". The lowest limit holds.',
        Group.MONEY,
    )
    fee_ppm: parsers.PartsPerMillion = setting(
        10_000,
        "The routing fee that is reckoned with: this share of the price (10000 is 1%) and `fee_base_msat`. It counts "
        "against limits and budgets until lnd tells the real fee. The daemon does not keep to it: it pays fees of up "
        "to 10,000 sat a payment, a limit of its own that nothing here can change.",
        Group.MONEY,
    )
    fee_base_msat: parsers.Count = setting(
        1_000, "The fixed part of the routing fee that is reckoned with.", Group.MONEY
    )
    budget_hour_msat: parsers.Count = setting(
        0,
        "What may be spent in a calendar hour (UTC), fees and unknown payments counted; 0 sets no limit.",
        Group.MONEY,
    )
    budget_day_msat: parsers.Count = setting(0, "The same for a day (UTC).", Group.MONEY)
    budget_month_msat: parsers.Count = setting(0, "The same for a month (UTC).", Group.MONEY)
    key_budget_hour_msat: parsers.Count = setting(
        0,
        "What each of `api_keys` may spend in a calendar hour (UTC); 0 sets no limit.",
        Group.MONEY,
    )
    key_budget_day_msat: parsers.Count = setting(0, "The same for a day (UTC).", Group.MONEY)
    key_budget_month_msat: parsers.Count = setting(0, "The same for a month (UTC).", Group.MONEY)
    loop_brake_per_minute: parsers.Count = setting(
        0,
        "How often the same body may come from the same key within a minute; past it the answer is 429. 0 is off.",
        Group.MONEY,
    )

    quote_attempts: parsers.Count = setting(
        3, "How many peers are asked for a quote of one request at most.", Group.TRUST, gt=0
    )
    quote_fanout: parsers.Count = setting(
        1,
        "How many of them are asked at the same time; the cheapest quote is taken.",
        Group.TRUST,
        gt=0,
    )
    exposure_base_msat: parsers.Count = setting(
        20_000_000,
        "How much may be paid to a peer and not yet delivered, before it has delivered anything. 0 sets no limit.",
        Group.TRUST,
    )
    exposure_unproven_msat: parsers.Count = setting(
        50_000_000,
        "How much of that may be out with all peers together that have not delivered `exposure_base_msat` yet, what was "
        "lost to them counted in; a day forgives as much. 0 sets no limit.",
        Group.TRUST,
    )
    exposure_share_ppm: parsers.PartsPerMillion = setting(
        500_000,
        "How much more of that a peer earns: this share of what it has delivered (500000 is half).",
        Group.TRUST,
    )
    breaker_failures: parsers.Count = setting(
        5, "Failures in a row after which a peer is left out for a while; 0 is off.", Group.TRUST
    )
    breaker_pause_s: parsers.Duration = setting(
        30.0, "How long a peer is left out before it is tried again.", Group.TRUST, gt=0
    )

    retry_window_s: parsers.Duration = setting(
        120.0,
        "How long after a request the same bytes from the same key, marked as a retry by the client's SDK, get its "
        "answer instead of buying again; 0 is off.",
        Group.ANSWERS,
    )
    join_grace_s: parsers.Duration = setting(
        10.0,
        "How long a paid answer is awaited after its client has gone, so that a retry can join.",
        Group.ANSWERS,
    )
    answers_keep_s: parsers.Duration = setting(
        600.0,
        "How long an answer is kept for requests with the same Idempotency-Key.",
        Group.ANSWERS,
    )
    answers_max_bytes: parsers.Size = setting(
        64 * 2**20,
        "Memory for kept answers; past it the oldest are let go.",
        Group.ANSWERS,
    )
    lnd_grpc_addr: parsers.OptionalGrpcTarget = setting(
        "",
        'lnd\'s gRPC address, "host:port", to learn what came of a payment (needs lcp-gateway[lnd]). It is only read '
        "from. Off when empty.",
        Group.LND,
    )
    lnd_tls_cert: parsers.OptionalFile = setting(None, "lnd's `tls.cert`.", Group.LND)
    lnd_macaroon_file: parsers.OptionalFile = setting(
        None,
        "A macaroon that may read: `lncli bakemacaroon info:read offchain:read`.",
        Group.LND,
    )
    reconcile_interval_s: parsers.Duration = setting(
        30.0, "How often lnd is asked about payments whose end is unknown.", Group.LND, gt=0
    )


class OperationSettings(BaseSettings):
    """One part of ``Settings``, which see."""

    http_tls_cert: parsers.OptionalFile = setting(
        None,
        "PEM file of the certificate, and what leads to its root, that HTTPS is served with.",
        Group.HTTP,
    )
    http_tls_key: parsers.OptionalFile = setting(
        None, "PEM file of the certificate's key; it may stand in the same file.", Group.HTTP
    )
    trusted_proxies: parsers.Networks = setting(
        (),
        "Addresses or networks of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed. Nobody's by default.",
        Group.HTTP,
    )

    default_model: parsers.Text = setting(
        "",
        "The model of a request that names none, embeddings apart. Such a request is a 400 when empty.",
        Group.ROUTING,
    )

    list_auto: parsers.Switch = setting(
        True,
        "Put `auto` into the list of models, for clients that offer what they find there.",
        Group.ROUTING,
    )

    timeout_s: parsers.Duration = setting(
        0.0,
        "How long one purchase may take in all, quote, payment and the last byte included; 0 leaves it to "
        "`timeout_quote_s` and `timeout_execute_s`.",
        Group.LIMITS,
    )

    max_stored_items: parsers.Count = setting(
        1_000,
        "Responses and chat completions that are stored for each credential, the oldest out first. 0 turns storing off, "
        "and with it `previous_response_id` and `background`.",
        Group.STORED,
    )
    max_stored_bytes: parsers.Size = setting(
        64 * 2**20, "Memory for what is stored in all.", Group.STORED, gt=0
    )
    stored_for_s: parsers.Duration = setting(
        86_400.0, "How long it is stored at most.", Group.STORED, gt=0
    )

    state_dir: parsers.OptionalFolder = setting(
        None,
        "Folder of the PID files and logs of gateways that run in the background. When empty: `lcp-gateway/run` in the "
        "folder for state, by the XDG rules.",
        Group.BACKGROUND,
    )
    pid_file: parsers.OptionalFile = setting(
        None,
        "The PID file, instead of one in `state_dir` named after host and port.",
        Group.BACKGROUND,
    )
    log_file: parsers.OptionalFile = setting(
        None, "The log, instead of one in `state_dir` named after host and port.", Group.BACKGROUND
    )
    log_max_bytes: parsers.Size = setting(
        10 * 2**20,
        "Size at which a background gateway's log is rotated; 0 never.",
        Group.BACKGROUND,
    )
    log_keep: parsers.Count = setting(5, "How many rotated logs are kept.", Group.BACKGROUND)
    start_timeout_s: parsers.Duration = setting(
        30.0, "How long `start` waits for the gateway to be ready.", Group.BACKGROUND, gt=0
    )
    stop_timeout_s: parsers.Duration = setting(
        45.0,
        "How long `stop` waits for the gateway to end before it kills it; longer than `shutdown_grace_s`, or paid answers "
        "may be cut.",
        Group.BACKGROUND,
        gt=0,
    )

    verbose: parsers.Switch = setting(
        False,
        "Log at debug level, and the settings in force at the start (without secrets).",
        Group.TELEMETRY,
    )
    slow_callback_ms: parsers.Count = setting(
        0,
        "Log each stretch of so many milliseconds or more in which the event loop did one thing only, and what it did; for "
        "finding faults of the gateway. 0 is off.",
        Group.TELEMETRY,
    )
    otlp_endpoint: parsers.OptionalHttpUrl = setting(
        "",
        "Where traces go: the base URL of an OpenTelemetry collector (OTLP over HTTP), as http://127.0.0.1:4318. Needs "
        "`lcp-gateway[tracing]`. No traces when empty.",
        Group.TELEMETRY,
    )
    otlp_headers: parsers.Metadata = setting(
        {}, "Headers that the collector asks for.", Group.TELEMETRY, secret=True
    )
    trace_ratio: parsers.Ratio = setting(
        1.0,
        "Share of the requests that are traced, from 0 to 1; a request that comes with a trace follows that one.",
        Group.TELEMETRY,
    )


Auth = Annotated[
    Literal["", "none", "keys", "accounts"],
    Form("none, keys or accounts", "MODE"),
    read_by(lambda value: parse_text(value).lower()),
]


class SellingSettings(BaseSettings):
    """One part of ``Settings``, which see."""

    auth: Auth = setting(
        "",
        "Who is served: everyone (`none`), who has one of `api_keys` (`keys`), or who has a key of an account, and is "
        "charged for it (`accounts`). When empty: `keys` where `api_keys` are set, else `none`.",
        Group.ACCOUNTS,
    )
    allow_open: parsers.Switch = setting(
        False,
        "Serve everyone on an address that other machines can reach. Without it the gateway does not start there "
        "unless it asks for keys.",
        Group.ACCOUNTS,
    )
    admin_key: parsers.BearerKey = setting(
        "",
        "The key to `/api/admin/…`. Off when empty.",
        Group.ACCOUNTS,
        secret=True,
    )
    keys_stale_s: parsers.Duration = setting(
        5.0,
        "How long the keys of accounts are accepted after they were last read from the database, which happens every "
        "second. Past it they are answered 503 and buy nothing: one may have been revoked.",
        Group.ACCOUNTS,
        gt=2,
    )
    api_concurrent: parsers.Count = setting(
        32,
        "Requests at one time that ask the database and buy nothing (`/api/wallet`, `/api/admin`, receipts, L402 invoices "
        "and tokens), of all customers; strangers and the operator have as many each. Some more wait a moment, the rest is "
        "answered 429.",
        Group.RATES,
        gt=0,
    )
    api_concurrent_per_caller: parsers.Count = setting(
        8,
        "Such requests of one account, one key of the operator, or one client address without a key.",
        Group.RATES,
        gt=0,
    )
    markup_percent: parsers.Number = setting(
        0.0,
        "What customers are charged on top of a price, as a share of it; rounded up. Routing fees are yours.",
        Group.ACCOUNTS,
    )
    markup_msat: parsers.Count = setting(
        0,
        "What they are charged besides for each request, also for one that is free.",
        Group.ACCOUNTS,
    )
    refund_undelivered: parsers.Switch = setting(
        True,
        "Give customers back what they were charged for an answer that was paid and did not come. The loss is yours.",
        Group.ACCOUNTS,
    )
    refund_account_day_msat: parsers.Count = setting(
        10_000_000,
        "What is given back so to one account in a day (UTC) at most; what is over it is withheld until you decide "
        "(`purchases refund`). 0 sets no limit.",
        Group.ACCOUNTS,
    )
    refund_day_msat: parsers.Count = setting(
        50_000_000,
        "What is given back so to all accounts together in a day at most. 0 sets no limit.",
        Group.ACCOUNTS,
    )
    topup_min_msat: parsers.Count = setting(
        1_000, "The least that a customer can pay in at once.", Group.ACCOUNTS, gt=0
    )
    topup_max_msat: parsers.Count = setting(1_000_000_000, "The most.", Group.ACCOUNTS, gt=0)
    topup_expiry_s: parsers.Duration = setting(
        3_600.0, "How long an invoice for it can be paid.", Group.ACCOUNTS, gt=0
    )
    topups_open_max: parsers.Count = setting(
        20, "How many invoices of one account may be open.", Group.ACCOUNTS, gt=0
    )
    l402: parsers.Switch = setting(
        False,
        "Let whoever has no key pay for one at the door (L402): the invoice of a 402 answer buys a token with a balance.",
        Group.ACCOUNTS,
    )
    l402_msat: parsers.Count = setting(
        100_000,
        "The balance of such a token; it can be filled up like any other.",
        Group.ACCOUNTS,
        gt=0,
    )
    l402_expiry_s: parsers.Duration = setting(
        30 * 86_400.0, "How long such a token is good.", Group.ACCOUNTS, gt=0
    )
    l402_invoices_per_minute: parsers.Count = setting(
        10,
        "How many invoices clients without a key may ask for from one address (of IPv6: one /64).",
        Group.ACCOUNTS,
        gt=0,
    )
    l402_secret: parsers.BearerKey = setting(
        "",
        "The secret that tokens are made with, the same for all replicas. When empty: made once, and kept in a file "
        "beside the journal.",
        Group.ACCOUNTS,
        secret=True,
    )
    lnd_invoice_macaroon_file: parsers.OptionalFile = setting(
        None,
        "A macaroon that may make invoices: `lncli bakemacaroon info:read invoices:read invoices:write`. When empty "
        "`lnd_macaroon_file` is used.",
        Group.ACCOUNTS,
    )

    max_requests_per_minute: parsers.Count = setting(
        0,
        "Requests a minute of everybody together; past it the answer is 429. 0 sets no limit.",
        Group.RATES,
    )
    max_tokens_per_minute: parsers.Count = setting(
        0,
        "Tokens a minute of everybody together, as reckoned from the requests; 0 sets no limit.",
        Group.RATES,
    )
    account_requests_per_minute: parsers.Count = setting(
        0, "The same for each account, whatever its keys say.", Group.RATES
    )
    account_tokens_per_minute: parsers.Count = setting(0, "The same for its tokens.", Group.RATES)
    key_requests_per_minute: parsers.Count = setting(
        0, "The same for each key that has no limit of its own.", Group.RATES
    )
    key_tokens_per_minute: parsers.Count = setting(0, "The same for its tokens.", Group.RATES)
    key_concurrent_jobs: parsers.Count = setting(
        0, "Jobs at one time of each key that has no limit of its own; 0 sets none.", Group.RATES
    )
    redis_url: parsers.OptionalRedis = setting(
        "",
        "`redis://` URL of the memory that several gateways share, for rate limits and repeated requests (needs "
        "lcp-gateway[redis]). When empty each gateway counts for itself.",
        Group.RATES,
        may_hold_password=True,
    )


class Settings(OperationSettings, MarketSettings, SellingSettings, MoneySettings):
    """Everything that can be configured. Plain values, already checked; nothing is read from outside."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=False
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is pydantic-settings'
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leave the sources to ``load``, which remembers where each value came from."""
        return (init_settings,)

    http_addr: parsers.Listen = setting(
        "127.0.0.1:8080",
        'Where the gateway listens. ":8080" means all interfaces.',
        Group.HTTP,
        openai_serve="HTTP_ADDR",
    )
    api_keys: parsers.BearerKeys = setting(
        (),
        "Keys that clients present as bearer tokens. Without any, everyone who reaches the address is served.",
        Group.HTTP,
        openai_serve="API_KEYS",
        secret=True,
    )
    allowed_hosts: parsers.Hosts = setting(
        (),
        'Names by which callers without a credential may reach the gateway, beside IP addresses and localhost: "gateway", '
        '"*.example.com" for all names below it, "*" for any. A request that comes under another name is refused with '
        "421, since a web page can have its own name lead to this address.",
        Group.HTTP,
    )
    cors_origins: parsers.Origins = setting(
        (),
        'Origins whose pages may call the gateway; "*" allows all. Off when empty. Programs built on a browser have '
        'origins of their own: "app://obsidian.md", "vscode-webview://*", "chrome-extension://<id>", "file://", "null".',
        Group.HTTP,
    )

    lcpd_grpc_addr: parsers.GrpcTarget = setting(
        "127.0.0.1:50051",
        'The daemon: "host:port" or "unix:/path". Not used with `embedded`.',
        Group.DAEMON,
        openai_serve="LCPD_GRPC_ADDR",
    )
    lcpd_tls: parsers.Switch = setting(False, "Speak TLS to the daemon.", Group.DAEMON)
    lcpd_tls_ca: parsers.OptionalFile = setting(
        None, "PEM file of the authorities to trust, instead of the system's.", Group.DAEMON
    )
    lcpd_tls_cert: parsers.OptionalFile = setting(
        None, "PEM file of the gateway's client certificate.", Group.DAEMON
    )
    lcpd_tls_key: parsers.OptionalFile = setting(
        None, "PEM file of the key to the client certificate.", Group.DAEMON
    )
    lcpd_tls_server_name: parsers.Text = setting(
        "",
        "Name to expect in the daemon's certificate, where it differs from the host.",
        Group.DAEMON,
    )
    lcpd_metadata: parsers.Metadata = setting(
        {},
        "Extra gRPC metadata sent with each call, for example a macaroon.",
        Group.DAEMON,
        secret=True,
    )
    proxy_from_environment: parsers.Switch = setting(
        False,
        "Reach the daemon, lnd, nodes and the collector through the proxy that `http_proxy`, `https_proxy`, `grpc_proxy` "
        "and `no_proxy` name. Loopback addresses and unix sockets are reached directly all the same. Without it these "
        "variables are ignored.",
        Group.DAEMON,
    )
    peers_refresh_s: parsers.Duration = setting(
        5.0, "How often the list of peers is read anew.", Group.DAEMON, gt=0
    )
    peers_stale_s: parsers.Duration = setting(
        15.0, "Age from which the list of peers is called stale.", Group.DAEMON, gt=0
    )
    preflight: parsers.Switch = setting(
        True, "Reach the daemon before the port is bound, and give up if that fails.", Group.DAEMON
    )
    preflight_timeout_s: parsers.Duration = setting(
        5.0, "How long the daemon may take to answer at the start.", Group.DAEMON, gt=0
    )

    timeout_quote_s: parsers.Duration = setting(
        5.0, "How long a quote may take.", Group.LIMITS, openai_serve="TIMEOUT_QUOTE", gt=0
    )
    timeout_execute_s: parsers.Duration = setting(
        120.0,
        "How long payment and computation may take together.",
        Group.LIMITS,
        openai_serve="TIMEOUT_EXECUTE",
        gt=0,
    )
    cancel_timeout_s: parsers.Duration = setting(
        2.0, "How long telling a peer that a job is abandoned may take.", Group.LIMITS, gt=0
    )
    max_body_bytes: parsers.Size = setting(
        2**20, "The largest request body; past it the answer is 413.", Group.LIMITS, gt=0
    )
    max_header_bytes: parsers.Size = setting(
        32 * 2**10, "The largest request head; past it the answer is 431.", Group.LIMITS, gt=0
    )
    max_concurrent_requests: parsers.Count = setting(
        2048, "Jobs at one time; past it the answer is 429. 0 sets no limit.", Group.LIMITS
    )
    request_read_timeout_s: parsers.Duration = setting(
        30.0, "How long a client may take to send its request.", Group.LIMITS, gt=0
    )
    keepalive_timeout_s: parsers.Duration = setting(
        75.0, "How long an idle connection is kept open.", Group.LIMITS, gt=0
    )
    shutdown_grace_s: parsers.Duration = setting(
        30.0, "How long running jobs may go on after SIGTERM.", Group.LIMITS
    )
    heartbeat_s: parsers.Duration = setting(
        0.0,
        "Silence in a stream after which a comment line is sent, against proxies that cut it; 0 is off.",
        Group.LIMITS,
    )
    stream_buffer_bytes: parsers.Size = setting(
        256 * 2**10, "What is held for a client that reads a stream slowly.", Group.LIMITS, gt=0
    )

    log_level: parsers.LogLevel = setting(
        "info", "The least severe level that is logged.", Group.TELEMETRY, openai_serve="LOG_LEVEL"
    )
    log_format: parsers.LogFormat = setting(
        "auto", "`auto` is `console` on a terminal and `json` elsewhere.", Group.TELEMETRY
    )
    metrics_addr: parsers.OptionalListen = setting(
        "",
        "An address of its own for /metrics, which then needs no key. Beside the API when empty.",
        Group.TELEMETRY,
    )

    embedded: parsers.Switch = setting(
        False,
        "Start a node with simulated Lightning and use it as the daemon. No real money moves.",
        Group.NODE,
    )
    node_listen: parsers.OptionalGrpcListen = setting(
        "",
        "Where the node listens. When empty: a private socket with `embedded`, 127.0.0.1:50051 for `lcp-gateway node`.",
        Group.NODE,
    )
    node_backend: parsers.Backend = setting(
        "echo",
        "What computes: `echo`, or the base URL of an OpenAI-compatible server.",
        Group.NODE,
    )
    node_backend_api_key: parsers.BearerKey = setting(
        "", "The key that the backend asks for.", Group.NODE, secret=True
    )
    node_peers_file: parsers.OptionalFile = setting(
        None, "TOML file that describes the node's peers.", Group.NODE
    )
    node_faults: parsers.Switch = setting(
        False, "Add a peer whose models misbehave in scripted ways.", Group.NODE
    )
    node_events_file: parsers.OptionalFile = setting(
        None,
        "File to which the node appends each quote, payment and result, as JSON lines.",
        Group.NODE,
    )
    node_tokens_per_second: parsers.Number = setting(
        0.0, "Pace of the echo backend; 0 leaves it to each peer.", Group.NODE
    )


def specs() -> Mapping[str, Spec]:
    """Give the spec of every setting by name, in the order of their groups."""
    found: dict[str, Spec] = {}
    for name, info in Settings.model_fields.items():
        extra = cast("dict[str, Any]", info.json_schema_extra)
        openai_serve, openclaw = extra["openai_serve"], extra["openclaw"]
        found[name] = Spec(
            name=name,
            default=info.default,
            description=info.description or "",
            group=Group(extra["group"]),
            form=next(item for item in info.metadata if isinstance(item, parsers.Form)),
            openai_serve=OPENAI_SERVE_PREFIX + openai_serve if openai_serve else "",
            openclaw=OPENCLAW_PREFIX + openclaw if openclaw else "",
            secret=extra["secret"],
            may_hold_password=extra["may_hold_password"],
        )
    order = list(Group)
    return dict(sorted(found.items(), key=lambda item: order.index(item[1].group)))
