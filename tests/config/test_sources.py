"""The precedence of sources, and the recorded source of each value."""

import pytest

from lcp_gateway.config import (
    DialinNodeConfig,
    JoinBackendConfig,
    ModelConfig,
    NodeConfig,
    Settings,
    SourceKind,
    load,
    specs,
)

OWN = {"LCP_GATEWAY_MAX_PRICE_MSAT": "3"}
SERVE = {"OPENAI_SERVE_MAX_PRICE_MSAT": "2"}


@pytest.fixture
def nowhere(tmp_path):
    """An environment whose configuration folder is empty."""
    return {"XDG_CONFIG_HOME": str(tmp_path / "xdg")}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "some.toml"
    path.write_text("max_price_msat = 1\n")
    return path


def price(**sources):
    loaded = load(**sources)
    return loaded.settings.max_price_msat, loaded.source_of("max_price_msat")


def test_without_any_source_everything_is_the_default(nowhere):
    loaded = load(flags={}, environ=nowhere)
    assert loaded.settings == Settings()
    assert loaded.warnings == ()
    assert loaded.config_file is None
    assert {loaded.source_of(name).kind for name in specs()} == {SourceKind.DEFAULT}


def test_the_file_beats_the_default(nowhere, file):
    value, source = price(flags={}, environ=nowhere, config_path=file)
    assert value == 1
    assert source.kind is SourceKind.FILE
    assert str(source) == f"{file}: max_price_msat"


def test_openai_serve_beats_the_file(nowhere, file):
    value, source = price(flags={}, environ=nowhere | SERVE, config_path=file)
    assert value == 2
    assert source.kind is SourceKind.OPENAI_SERVE
    assert str(source) == "OPENAI_SERVE_MAX_PRICE_MSAT"


def test_openclaw_beats_the_file_and_the_own_environment_beats_openclaw(nowhere, tmp_path):
    path = tmp_path / "claw.toml"
    path.write_text("openclaw_price = 1\n")
    environ = nowhere | {"OPENCLAW_PRICE": "2"}
    loaded = load(flags={}, environ=environ, config_path=path)
    assert loaded.settings.openclaw_price == 2
    assert loaded.source_of("openclaw_price").kind is SourceKind.OPENCLAW
    assert str(loaded.source_of("openclaw_price")) == "OPENCLAW_PRICE"
    environ |= {"LCP_GATEWAY_OPENCLAW_PRICE": "3"}
    loaded = load(flags={}, environ=environ, config_path=path)
    assert loaded.settings.openclaw_price == 3
    assert loaded.source_of("openclaw_price").kind is SourceKind.ENVIRONMENT


def test_the_own_environment_beats_openai_serve(nowhere, file):
    value, source = price(flags={}, environ=nowhere | SERVE | OWN, config_path=file)
    assert value == 3
    assert source.kind is SourceKind.ENVIRONMENT
    assert str(source) == "LCP_GATEWAY_MAX_PRICE_MSAT"


def test_a_flag_beats_everything(nowhere, file):
    value, source = price(flags={"max_price_msat": "4"}, environ=nowhere | SERVE | OWN, config_path=file)
    assert value == 4
    assert source.kind is SourceKind.FLAG
    assert str(source) == "--max-price-msat"


def test_a_flag_that_was_not_given_leaves_the_others(nowhere):
    value, _ = price(flags={"max_price_msat": None}, environ=nowhere | OWN)
    assert value == 3


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_variable_counts_as_unset(nowhere, empty):
    environ = nowhere | SERVE | {"LCP_GATEWAY_MAX_PRICE_MSAT": empty}
    assert price(flags={}, environ=environ)[0] == 2


def test_a_negated_flag_is_named_as_it_was_typed(nowhere):
    environ = nowhere | {"LCP_GATEWAY_PREFLIGHT": "true"}
    loaded = load(flags={"preflight": False}, environ=environ)
    assert loaded.settings.preflight is False
    assert str(loaded.source_of("preflight")) == "--no-preflight"


def test_the_users_own_file_is_found_in_the_xdg_folder(tmp_path):
    path = tmp_path / "lcp-gateway" / "config.toml"
    path.parent.mkdir()
    path.write_text('log_level = "debug"\n')
    loaded = load(flags={}, environ={"XDG_CONFIG_HOME": str(tmp_path)})
    assert loaded.settings.log_level == "debug"
    assert loaded.config_file == path


def test_a_relative_xdg_folder_is_ignored(tmp_path, monkeypatch):
    path = tmp_path / "here" / "lcp-gateway" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text("nonsense = 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("platformdirs.user_config_path", lambda *_, **__: tmp_path / "none")
    assert load(flags={}, environ={"XDG_CONFIG_HOME": "here"}).config_file is None


def test_the_variable_names_another_file_and_the_flag_yet_another(tmp_path, file, nowhere):
    named = tmp_path / "named.toml"
    named.write_text("max_price_msat = 9\n")
    environ = nowhere | {"LCP_GATEWAY_CONFIG": str(named)}
    assert price(flags={}, environ=environ)[0] == 9
    assert price(flags={}, environ=environ, config_path=file)[0] == 1


def test_a_value_that_loses_is_not_judged(nowhere):
    environ = nowhere | OWN | {"OPENAI_SERVE_MAX_PRICE_MSAT": "nonsense"}
    assert price(flags={}, environ=environ)[0] == 3


def test_every_setting_is_read_from_its_own_variable(nowhere, tmp_path, subtests):
    existing = tmp_path / "file"
    existing.touch()
    for name, spec in specs().items():
        with subtests.test(name):
            text, expected = EXAMPLES[name] if name in EXAMPLES else (str(existing), existing)
            environ = nowhere | needed_beside(name, str(existing)) | {spec.environment: text}
            loaded = load(flags={}, environ=environ)
            assert getattr(loaded.settings, name) == expected
            assert loaded.source_of(name).kind is SourceKind.ENVIRONMENT
            assert expected != spec.default


def needed_beside(name, existing):
    """Return the variables that a setting requires."""
    extra = {"LCP_GATEWAY_LCPD_TLS": "1"} if name.startswith("lcpd_tls_") else {}
    if name in {"lcpd_tls_cert", "lcpd_tls_key"}:
        extra |= {f"LCP_GATEWAY_{other}": existing for other in ("LCPD_TLS_CERT", "LCPD_TLS_KEY")}
    if name in {"lnd", "lnd_node_macaroon_file", "node_config"}:
        return {"LCP_GATEWAY_LND": "lnd:10009", "LCP_GATEWAY_LND_TLS_CERT": existing}
    if name.startswith("lnd_"):
        extra |= {"LCP_GATEWAY_LND_GRPC_ADDR": "lnd:10009"} | {
            f"LCP_GATEWAY_{other}": existing for other in ("LND_TLS_CERT", "LND_MACAROON_FILE")
        }
    if name in {"http_tls_cert", "http_tls_key"}:
        extra |= {f"LCP_GATEWAY_HTTP_TLS_{other}": existing for other in ("CERT", "KEY")}
    if name == "withdrawals":
        extra |= {"LCP_GATEWAY_EMBEDDED": "1"}
    if name in {"admin_key", "l402", "l402_secret", "registration", "withdrawals", "dialin_accounts"}:
        extra |= {"LCP_GATEWAY_AUTH": "accounts"}
    if name == "local_model":
        extra |= {"LCP_GATEWAY_EMBEDDED": "1"}
    if name == "openclaw_enabled":
        extra |= {"LCP_GATEWAY_OPENCLAW_BASE_URL": "http://claw"}
    return extra


def test_settings_read_nothing_from_the_process_by_themselves(monkeypatch):
    monkeypatch.setenv("HTTP_ADDR", "10.0.0.1:1")
    monkeypatch.setenv("EMBEDDED", "true")
    assert Settings().http_addr == "127.0.0.1:8080"
    assert Settings().embedded is False


PEER = "02" + "ab" * 32
EXAMPLES = {
    "http_addr": ("[::1]:9000", "[::1]:9000"),
    "api_keys": ("one, two,,one", ("one", "two")),
    "allowed_hosts": ("Gateway., *.Example.com", ("gateway", "*.example.com")),
    "cors_origins": ("*", ("*",)),
    "lcpd_grpc_addr": ("unix:/run/lcpd.sock", "unix:/run/lcpd.sock"),
    "lnd": ("127.0.0.1:10009", "127.0.0.1:10009"),
    "lcpd_tls": ("yes", True),
    "lcpd_tls_server_name": ("lcpd.lan", "lcpd.lan"),
    "lcpd_metadata": ("Macaroon=ab=cd; x-team=red", {"macaroon": "ab=cd", "x-team": "red"}),
    "workers": ("Auto", "auto"),
    "lcpd_transport": ("Direct", "direct"),
    "proxy_from_environment": ("yes", True),
    "slow_callback_ms": ("50", 50),
    "peers_refresh_s": ("1.5s", 1.5),
    "peers_stale_s": ("1m", 60.0),
    "preflight": ("0", False),
    "preflight_timeout_s": ("250ms", 0.25),
    "trusted_proxies": ("10.0.0.7, fd00::/8", ("10.0.0.7/32", "fd00::/8")),
    "default_peer_id": (PEER.upper(), PEER),
    "default_model": (" gpt-5 ", "gpt-5"),
    "model_map": (f"a=b:7={PEER.upper()};gpt={PEER}", {"a=b:7": PEER, "gpt": PEER}),
    "peer_models": (f"{PEER.upper()}=qwen, a=b ; * = gpt", {PEER: ("qwen", "a=b"), "*": ("gpt",)}),
    "explicit_choice": ("Score", "score"),
    "list_auto": ("no", False),
    "model_allowlist": ("gpt-5,llama", ("gpt-5", "llama")),
    "allow_unlisted_models": ("true", True),
    "models": (
        '{"qwen": {"type": "chat", "aliases": ["gpt-4o-mini"]}}',
        {"qwen": ModelConfig(type="chat", aliases=("gpt-4o-mini",))},
    ),
    "nodes": ('[{"name": "box", "base_url": "http://box:11434"}]', (NodeConfig("box", "http://box:11434/v1"),)),
    "nodes_refresh_s": ("1m", 60.0),
    "dialin_nodes": ('[{"name": "gpu", "token": "hush"}]', (DialinNodeConfig("gpu", "hush"),)),
    "dialin_accounts": ("true", True),
    "dialin_models": ("a, b", ("a", "b")),
    "dialin_timeout_s": ("1m", 60.0),
    "dialin_max_nodes": ("7", 7),
    "dialin_heartbeat_s": ("1s", 1.0),
    "dialin_window_bytes": ("1MiB", 2**20),
    "dialin_probe": ("true", True),
    "dialin_probe_prompt": ("1 + 1?", "1 + 1?"),
    "dialin_probe_answer": ("2", "2"),
    "dialin_probe_interval_s": ("1m", 60.0),
    "join_url": ("https://gw.example", "wss://gw.example/api/nodes/connect"),
    "join_token": ("hush", "hush"),
    "join_name": ("gpu", "gpu"),
    "join_backend": ("http://box:11434", "http://box:11434/v1"),
    "join_backend_api_key": ("hush", "hush"),
    "join_backends": ('[{"base_url": "http://box:11434"}]', (JoinBackendConfig("http://box:11434/v1"),)),
    "join_models": ("a, b", ("a", "b")),
    "join_concurrent": ("9", 9),
    "join_price_per_request_msat": ("9", 9),
    "join_price_per_1k_input_msat": ("9", 9),
    "join_price_per_1k_output_msat": ("9", 9),
    "join_price_per_minute_sat": ("9.5", 9.5),
    "join_max_output_tokens": ("9", 9),
    "join_refresh_s": ("1m", 60.0),
    "join_drain_s": ("1m", 60.0),
    "join_allow_plain": ("true", True),
    "llama_server": ("/opt/llama-server", "/opt/llama-server"),
    "llama_server_args": ("-ngl, 99", ("-ngl", "99")),
    "local_models_loaded_max": ("3", 3),
    "local_models_memory_mib": ("8000", 8_000),
    "local_models_idle_s": ("1m", 60.0),
    "local_models_preload": ("true", True),
    "local_model": ("true", True),
    "openclaw_enabled": ("true", True),
    "openclaw_base_url": ("http://claw:3000/", "http://claw:3000/v1"),
    "openclaw_api_key": ("hush", "hush"),
    "openclaw_node_name": ("Claw", "Claw"),
    "openclaw_price": ("2.5", 2.5),
    "openclaw_timeout": ("1m", 60.0),
    "routing_weight_availability": ("1", 1.0),
    "routing_weight_speed": ("0", 0.0),
    "routing_weight_delivery": ("2", 2.0),
    "routing_weight_price": ("0.5", 0.5),
    "routing_weight_fit": ("3", 3.0),
    "routing_temperature": ("0.2", 0.2),
    "routing_half_life_s": ("10m", 600.0),
    "max_price_msat": ("1000", 1000),
    "journal_url": ("postgresql://u:p@h/db", "postgresql://u:p@h/db"),
    "network": ("Signet", "tbs"),
    "max_total_msat": ("2000", 2000),
    "model_max_total_msat": ("a=b=5;gpt=0", {"a=b": 5, "gpt": 0}),
    "fee_ppm": ("5000", 5000),
    "fee_base_msat": ("0", 0),
    "fee_limit_msat": ("9", 9),
    "budget_hour_msat": ("1", 1),
    "budget_day_msat": ("2", 2),
    "budget_month_msat": ("3", 3),
    "key_budget_hour_msat": ("4", 4),
    "key_budget_day_msat": ("5", 5),
    "key_budget_month_msat": ("6", 6),
    "loop_brake_per_minute": ("30", 30),
    "quote_attempts": ("5", 5),
    "quote_fanout": ("3", 3),
    "exposure_base_msat": ("0", 0),
    "exposure_share_ppm": ("1000000", 1_000_000),
    "exposure_unproven_msat": ("7", 7),
    "breaker_failures": ("0", 0),
    "breaker_pause_s": ("1m", 60.0),
    "retry_window_s": ("0", 0.0),
    "join_grace_s": ("3s", 3.0),
    "answers_keep_s": ("1h", 3600.0),
    "answers_max_bytes": ("8MiB", 8 * 1024 * 1024),
    "auth": ("Accounts", "accounts"),
    "console": ("On", "on"),
    "console_insecure": ("yes", True),
    "registration": ("Invite", "invite"),
    "allow_open": ("true", True),
    "admin_key": ("hush", "hush"),
    "markup_percent": ("2.5", 2.5),
    "markup_msat": ("100", 100),
    "refund_account_day_msat": ("8", 8),
    "refund_day_msat": ("9", 9),
    "refund_undelivered": ("no", False),
    "topup_min_msat": ("5000", 5_000),
    "topup_max_msat": ("6000", 6_000),
    "keys_stale_s": ("7s", 7.0),
    "api_concurrent": ("40", 40),
    "api_concurrent_per_caller": ("5", 5),
    "topup_expiry_s": ("10m", 600.0),
    "topups_open_max": ("3", 3),
    "node_commission_percent": ("12.5", 12.5),
    "withdrawals": ("yes", True),
    "withdrawal_min_msat": ("2000", 2_000),
    "withdrawal_max_msat": ("0", 0),
    "withdrawal_account_day_msat": ("7", 7),
    "withdrawal_day_msat": ("8", 8),
    "withdrawal_approval_msat": ("9", 9),
    "withdrawal_fee_percent": ("1.5", 1.5),
    "withdrawal_fee_base_msat": ("4", 4),
    "withdrawal_freeze_s": ("2h", 7_200.0),
    "withdrawal_reserve_msat": ("5", 5),
    "withdrawal_timeout_s": ("30s", 30.0),
    "l402": ("true", True),
    "l402_msat": ("50000", 50_000),
    "l402_expiry_s": ("24h", 86_400.0),
    "l402_invoices_per_minute": ("3", 3),
    "l402_secret": ("hush", "hush"),
    "max_requests_per_minute": ("60", 60),
    "max_tokens_per_minute": ("100000", 100_000),
    "account_requests_per_minute": ("1", 1),
    "account_tokens_per_minute": ("2", 2),
    "key_requests_per_minute": ("3", 3),
    "key_tokens_per_minute": ("4", 4),
    "key_concurrent_jobs": ("5", 5),
    "redis_url": ("redis://:pw@127.0.0.1/1", "redis://:pw@127.0.0.1/1"),
    "lnd_grpc_addr": ("lnd:10009", "lnd:10009"),
    "reconcile_interval_s": ("5m", 300.0),
    "max_stored_items": ("0", 0),
    "max_stored_bytes": ("1MiB", 2**20),
    "stored_for_s": ("1h", 3600.0),
    "timeout_quote_s": ("2", 2.0),
    "timeout_execute_s": ("1m30s", 90.0),
    "timeout_s": ("5m", 300.0),
    "cancel_timeout_s": ("1s", 1.0),
    "max_body_bytes": ("2MiB", 2 * 1024 * 1024),
    "max_header_bytes": ("64KiB", 64 * 1024),
    "max_concurrent_requests": ("0", 0),
    "request_read_timeout_s": ("3", 3.0),
    "keepalive_timeout_s": ("4", 4.0),
    "shutdown_grace_s": ("0", 0.0),
    "heartbeat_s": ("15s", 15.0),
    "stream_buffer_bytes": ("1024", 1024),
    "log_level": ("WARNING", "warn"),
    "log_format": ("json", "json"),
    "metrics_addr": ("127.0.0.1:9464", "127.0.0.1:9464"),
    "verbose": ("true", True),
    "otlp_endpoint": ("http://otel:4318/", "http://otel:4318"),
    "otlp_headers": ("Authorization=Bearer x", {"authorization": "Bearer x"}),
    "trace_ratio": ("0.1", 0.1),
    "log_max_bytes": ("1MB", 10**6),
    "log_keep": ("0", 0),
    "start_timeout_s": ("5s", 5.0),
    "stop_timeout_s": ("1m", 60.0),
    "embedded": ("true", True),
    "node_listen": (":50052", ":50052"),
    "node_backend": ("http://127.0.0.1:11434/v1/", "http://127.0.0.1:11434/v1"),
    "node_backend_api_key": ("hush", "hush"),
    "node_faults": ("on", True),
    "node_tokens_per_second": ("12.5", 12.5),
}
