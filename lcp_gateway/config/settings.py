"""The settings: one flat model in which a setting is one entry, from its type to its place in the docs."""

from collections.abc import Mapping
from typing import Any, cast

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from lcp_gateway.config import forms, operation_forms
from lcp_gateway.config.declare import OPENAI_SERVE_PREFIX, OPENCLAW_PREFIX, Group, Spec, setting
from lcp_gateway.config.market import MarketSettings
from lcp_gateway.config.money import MoneySettings
from lcp_gateway.config.operation import OperationSettings
from lcp_gateway.config.selling import SellingSettings


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

    http_addr: forms.Listen = setting(
        "127.0.0.1:8080",
        'Where the gateway listens. ":8080" means all interfaces.',
        Group.HTTP,
        openai_serve="HTTP_ADDR",
    )
    api_keys: forms.BearerKeys = setting(
        (),
        "Keys that clients present as bearer tokens. Without any, everyone who reaches the address is served.",
        Group.HTTP,
        openai_serve="API_KEYS",
        secret=True,
    )
    allowed_hosts: operation_forms.Hosts = setting(
        (),
        'Names by which callers without a credential may reach the gateway, beside IP addresses and localhost: "gateway", '
        '"*.example.com" for all names below it, "*" for any. A request that comes under another name is refused with '
        "421, since a web page can have its own name lead to this address.",
        Group.HTTP,
    )
    cors_origins: forms.Origins = setting(
        (),
        'Origins whose pages may call the gateway; "*" allows all. Off when empty. Programs built on a browser have '
        'origins of their own: "app://obsidian.md", "vscode-webview://*", "chrome-extension://<id>", "file://", "null".',
        Group.HTTP,
    )

    lcpd_grpc_addr: forms.GrpcTarget = setting(
        "127.0.0.1:50051",
        'The daemon: "host:port" or "unix:/path". Not used with `embedded`.',
        Group.DAEMON,
        openai_serve="LCPD_GRPC_ADDR",
    )
    lcpd_tls: forms.Switch = setting(False, "Speak TLS to the daemon.", Group.DAEMON)
    lcpd_tls_ca: forms.OptionalFile = setting(
        None, "PEM file of the authorities to trust, instead of the system's.", Group.DAEMON
    )
    lcpd_tls_cert: forms.OptionalFile = setting(
        None, "PEM file of the gateway's client certificate.", Group.DAEMON
    )
    lcpd_tls_key: forms.OptionalFile = setting(
        None, "PEM file of the key to the client certificate.", Group.DAEMON
    )
    lcpd_tls_server_name: forms.Text = setting(
        "",
        "Name to expect in the daemon's certificate, where it differs from the host.",
        Group.DAEMON,
    )
    lcpd_metadata: forms.Metadata = setting(
        {},
        "Extra gRPC metadata sent with each call, for example a macaroon.",
        Group.DAEMON,
        secret=True,
    )
    proxy_from_environment: forms.Switch = setting(
        False,
        "Reach the daemon, lnd, nodes and the collector through the proxy that `http_proxy`, `https_proxy`, `grpc_proxy` "
        "and `no_proxy` name. Loopback addresses and unix sockets are reached directly all the same. Without it these "
        "variables are ignored.",
        Group.DAEMON,
    )
    peers_refresh_s: forms.Duration = setting(
        5.0, "How often the list of peers is read anew.", Group.DAEMON, gt=0
    )
    peers_stale_s: forms.Duration = setting(
        15.0, "Age from which the list of peers is called stale.", Group.DAEMON, gt=0
    )
    preflight: forms.Switch = setting(
        True, "Reach the daemon before the port is bound, and give up if that fails.", Group.DAEMON
    )
    preflight_timeout_s: forms.Duration = setting(
        5.0, "How long the daemon may take to answer at the start.", Group.DAEMON, gt=0
    )

    timeout_quote_s: forms.Duration = setting(
        5.0, "How long a quote may take.", Group.LIMITS, openai_serve="TIMEOUT_QUOTE", gt=0
    )
    timeout_execute_s: forms.Duration = setting(
        120.0,
        "How long payment and computation may take together.",
        Group.LIMITS,
        openai_serve="TIMEOUT_EXECUTE",
        gt=0,
    )
    cancel_timeout_s: forms.Duration = setting(
        2.0, "How long telling a peer that a job is abandoned may take.", Group.LIMITS, gt=0
    )
    max_body_bytes: forms.Size = setting(
        2**20, "The largest request body; past it the answer is 413.", Group.LIMITS, gt=0
    )
    max_header_bytes: forms.Size = setting(
        32 * 2**10, "The largest request head; past it the answer is 431.", Group.LIMITS, gt=0
    )
    max_concurrent_requests: forms.Count = setting(
        2048, "Jobs at one time; past it the answer is 429. 0 sets no limit.", Group.LIMITS
    )
    request_read_timeout_s: forms.Duration = setting(
        30.0, "How long a client may take to send its request.", Group.LIMITS, gt=0
    )
    keepalive_timeout_s: forms.Duration = setting(
        75.0, "How long an idle connection is kept open.", Group.LIMITS, gt=0
    )
    shutdown_grace_s: forms.Duration = setting(
        30.0, "How long running jobs may go on after SIGTERM.", Group.LIMITS
    )
    heartbeat_s: forms.Duration = setting(
        0.0,
        "Silence in a stream after which a comment line is sent, against proxies that cut it; 0 is off.",
        Group.LIMITS,
    )
    stream_buffer_bytes: forms.Size = setting(
        256 * 2**10, "What is held for a client that reads a stream slowly.", Group.LIMITS, gt=0
    )

    log_level: forms.LogLevel = setting(
        "info", "The least severe level that is logged.", Group.TELEMETRY, openai_serve="LOG_LEVEL"
    )
    log_format: forms.LogFormat = setting(
        "auto", "`auto` is `console` on a terminal and `json` elsewhere.", Group.TELEMETRY
    )
    metrics_addr: forms.OptionalListen = setting(
        "",
        "An address of its own for /metrics, which then needs no key. Beside the API when empty.",
        Group.TELEMETRY,
    )

    embedded: forms.Switch = setting(
        False,
        "Start a node with simulated Lightning and use it as the daemon. No real money moves.",
        Group.NODE,
    )
    node_listen: forms.OptionalGrpcListen = setting(
        "",
        "Where the node listens. When empty: a private socket with `embedded`, 127.0.0.1:50051 for `lcp-gateway node`.",
        Group.NODE,
    )
    node_backend: forms.Backend = setting(
        "echo",
        "What computes: `echo`, or the base URL of an OpenAI-compatible server.",
        Group.NODE,
    )
    node_backend_api_key: forms.BearerKey = setting(
        "", "The key that the backend asks for.", Group.NODE, secret=True
    )
    node_peers_file: forms.OptionalFile = setting(
        None, "TOML file that describes the node's peers.", Group.NODE
    )
    node_faults: forms.Switch = setting(
        False, "Add a peer whose models misbehave in scripted ways.", Group.NODE
    )
    node_events_file: forms.OptionalFile = setting(
        None,
        "File to which the node appends each quote, payment and result, as JSON lines.",
        Group.NODE,
    )
    node_tokens_per_second: forms.Number = setting(
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
            form=next(item for item in info.metadata if isinstance(item, forms.Form)),
            openai_serve=OPENAI_SERVE_PREFIX + openai_serve if openai_serve else "",
            openclaw=OPENCLAW_PREFIX + openclaw if openclaw else "",
            secret=extra["secret"],
            may_hold_password=extra["may_hold_password"],
        )
    order = list(Group)
    return dict(sorted(found.items(), key=lambda item: order.index(item[1].group)))
