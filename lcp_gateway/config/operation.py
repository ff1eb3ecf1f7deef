"""The settings of the program's life: TLS, proxies, what is stored for clients, the background, traces."""

from pydantic_settings import BaseSettings

from lcp_gateway.config import forms, operation_forms
from lcp_gateway.config.declare import Group, setting


class OperationSettings(BaseSettings):
    """One part of ``Settings``, which see."""

    http_tls_cert: forms.OptionalFile = setting(
        None,
        "PEM file of the certificate, and what leads to its root, that HTTPS is served with.",
        Group.HTTP,
    )
    http_tls_key: forms.OptionalFile = setting(
        None, "PEM file of the certificate's key; it may stand in the same file.", Group.HTTP
    )
    trusted_proxies: operation_forms.Networks = setting(
        (),
        "Addresses or networks of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed. Nobody's by default.",
        Group.HTTP,
    )

    default_model: forms.Text = setting(
        "",
        "The model of a request that names none, embeddings apart. Such a request is a 400 when empty.",
        Group.ROUTING,
    )

    list_auto: forms.Switch = setting(
        True,
        "Put `auto` into the list of models, for clients that offer what they find there.",
        Group.ROUTING,
    )

    timeout_s: forms.Duration = setting(
        0.0,
        "How long one purchase may take in all, quote, payment and the last byte included; 0 leaves it to "
        "`timeout_quote_s` and `timeout_execute_s`.",
        Group.LIMITS,
    )

    max_stored_items: forms.Count = setting(
        1_000,
        "Responses and chat completions that are stored for each credential, the oldest out first. 0 turns storing off, "
        "and with it `previous_response_id` and `background`.",
        Group.STORED,
    )
    max_stored_bytes: forms.Size = setting(
        64 * 2**20, "Memory for what is stored in all.", Group.STORED, gt=0
    )
    stored_for_s: forms.Duration = setting(
        86_400.0, "How long it is stored at most.", Group.STORED, gt=0
    )

    state_dir: operation_forms.OptionalFolder = setting(
        None,
        "Folder of the PID files and logs of gateways that run in the background. When empty: `lcp-gateway/run` in the "
        "folder for state, by the XDG rules.",
        Group.BACKGROUND,
    )
    pid_file: forms.OptionalFile = setting(
        None,
        "The PID file, instead of one in `state_dir` named after host and port.",
        Group.BACKGROUND,
    )
    log_file: forms.OptionalFile = setting(
        None, "The log, instead of one in `state_dir` named after host and port.", Group.BACKGROUND
    )
    log_max_bytes: forms.Size = setting(
        10 * 2**20,
        "Size at which a background gateway's log is rotated; 0 never.",
        Group.BACKGROUND,
    )
    log_keep: forms.Count = setting(5, "How many rotated logs are kept.", Group.BACKGROUND)
    start_timeout_s: forms.Duration = setting(
        30.0, "How long `start` waits for the gateway to be ready.", Group.BACKGROUND, gt=0
    )
    stop_timeout_s: forms.Duration = setting(
        45.0,
        "How long `stop` waits for the gateway to end before it kills it; longer than `shutdown_grace_s`, or paid answers "
        "may be cut.",
        Group.BACKGROUND,
        gt=0,
    )

    verbose: forms.Switch = setting(
        False,
        "Log at debug level, and the settings in force at the start (without secrets).",
        Group.TELEMETRY,
    )
    slow_callback_ms: forms.Count = setting(
        0,
        "Log each stretch of so many milliseconds or more in which the event loop did one thing only, and what it did; for "
        "finding faults of the gateway. 0 is off.",
        Group.TELEMETRY,
    )
    otlp_endpoint: operation_forms.OptionalHttpUrl = setting(
        "",
        "Where traces go: the base URL of an OpenTelemetry collector (OTLP over HTTP), as http://127.0.0.1:4318. Needs "
        "`lcp-gateway[tracing]`. No traces when empty.",
        Group.TELEMETRY,
    )
    otlp_headers: forms.Metadata = setting(
        {}, "Headers that the collector asks for.", Group.TELEMETRY, secret=True
    )
    trace_ratio: operation_forms.Ratio = setting(
        1.0,
        "Share of the requests that are traced, from 0 to 1; a request that comes with a trace follows that one.",
        Group.TELEMETRY,
    )
