"""Errors of a configuration name the key, the source and the nearest valid name, and contain no secret."""

import pytest

from lcp_gateway.config import ConfigError, Settings, load, worker_count


@pytest.fixture
def problems_of(tmp_path):
    """Load from an environment and a TOML text, and return the problems."""

    def attempt(environ=(), toml=None, flags=()):
        path = None
        if toml is not None:
            path = tmp_path / "config.toml"
            path.write_bytes(toml if isinstance(toml, bytes) else toml.encode())
        environment = {"XDG_CONFIG_HOME": str(tmp_path / "none"), **dict(environ)}
        with pytest.raises(ConfigError) as caught:
            load(flags=dict(flags), environ=environment, config_path=path)
        return [problem.replace(str(tmp_path), "") for problem in caught.value.problems]

    return attempt


def test_an_unknown_key_in_the_file_names_file_key_and_nearest(problems_of):
    assert problems_of(toml="http-adr = 1\n") == ["/config.toml: http-adr: unknown key; did you mean http_addr?"]


def test_a_key_like_no_other_gets_no_suggestion(problems_of):
    assert problems_of(toml="zzz = 1\n") == ["/config.toml: zzz: unknown key"]


def test_an_unknown_variable_names_the_nearest(problems_of):
    assert problems_of({"LCP_GATEWAY_TIMEOUT_QUOTE": "5s"}) == [
        ("LCP_GATEWAY_TIMEOUT_QUOTE: unknown environment variable; did you mean LCP_GATEWAY_TIMEOUT_QUOTE_S?")
    ]


def test_an_unknown_flag_names_the_nearest(problems_of):
    assert problems_of(flags={"max_price": "1"}) == ["--max-price: unknown flag; did you mean --max-price-msat?"]


def test_a_secret_has_no_flag(problems_of):
    assert problems_of(flags={"api_keys": "sk-1"})[0].startswith("--api-keys: unknown flag")


def test_everything_is_reported_at_once(problems_of):
    found = problems_of(
        {"LCP_GATEWAY_LOG_LEVEL": "loud", "LCP_GATEWAY_FOO": "1", "OPENAI_SERVE_TIMEOUT_QUOTE": "x"},
        toml="bar = 1\nmax_body_bytes = true\n",
        flags={"http_addr": "8080"},
    )
    named = ["--http-addr", "LOG_LEVEL", "FOO", "TIMEOUT_QUOTE", ": bar:", "max_body_bytes"]
    assert len(found) == len(named)
    assert all(any(name in problem for problem in found) for name in named)


def test_a_bad_value_in_the_file_names_file_and_key(problems_of):
    (problem,) = problems_of(toml='timeout_execute_s = "soon"\n')
    assert problem.startswith("/config.toml: timeout_execute_s: must be a duration")
    assert problem.endswith("(got 'soon')")


BAD_VALUES = {
    "HTTP_ADDR": ["8080", "host", "http://h:1", "::1:80", "h:99999", "h:-1", "a b:1", "[::1:80"],
    "LCPD_GRPC_ADDR": ["h", "h:0", ":50051", "unix:", "/run/x.sock", "http://h:1", "ftp://h"],
    "METRICS_ADDR": ["9464"],
    "DEFAULT_PEER_ID": ["node:", "node:a/b", "node:box", "NODE:box", "02ab", "zz" * 33, "ab" * 34],
    "MODEL_MAP": [
        "gpt",
        "gpt=02",
        "gpt=node:",
        "gpt=node:a b",
        "gpt=node:box",
        "=" + "ab" * 33,
        f"a={'ab' * 33};a={'cd' * 33}",
    ],
    "MAX_PRICE_MSAT": ["-1", "1.5", "many", str(2**63)],
    "JOURNAL_URL": [":memory:", "mysql://h/db", "sqlite://", "postgresql:///"],
    "NETWORK": ["bitcoin", "bc1", "main net"],
    "MODEL_MAX_TOTAL_MSAT": ["gpt", "gpt=", "gpt=-1", "=5", "gpt=5;gpt=6", "gpt=1.5"],
    "FEE_PPM": ["1000001", "-1", "1%"],
    "QUOTE_FANOUT": ["0", "-1", "4"],
    "QUOTE_ATTEMPTS": ["0"],
    "ANSWERS_MAX_BYTES": ["lots"],
    "BREAKER_PAUSE_S": ["0"],
    "LND_GRPC_ADDR": ["lnd", "https://lnd:10009"],
    "RECONCILE_INTERVAL_S": ["0"],
    "TIMEOUT_QUOTE_S": ["0", "-1s", "nan", "inf", "5 parsecs", "s", "1s2", "1e400"],
    "MAX_BODY_BYTES": ["0", "-1", "1.5", "1XB", "0.3KiB"],
    "LOG_LEVEL": ["trace"],
    "LOG_FORMAT": ["xml"],
    "EMBEDDED": ["maybe"],
    "ALLOWED_HOSTS": ["http://gateway", "gateway:8080", "a/b", "a*b", "*.", "a b"],
    "CORS_ORIGINS": [
        "chat.example.com",
        "https://a.example/path",
        "https://a.example/",
        "https://*",
        "https://*.example.com",
        "http://",
        "app://a*",
        "app:x",
    ],
    "NODE_BACKEND": ["ollama", "ftp://h", "http://", "http://user:pw@h/v1"],
    "NODES": ["x", "{}", "[1]", "3", "null", '[{"name": "a", "name": "b"}]', "[" * 100_000],
    "MODELS": ["x", "[]", '{"a": 1}', "null", '{"a": {}, "a": {}}'],
    "NODES_REFRESH_S": ["0", "often"],
    "OPENCLAW_ENABLED": ["maybe", "true"],
    "OPENCLAW_BASE_URL": ["claw", "http://", "ftp://claw", "http://sk-1@claw", "http://claw?a=b"],
    "OPENCLAW_NODE_NAME": ["my claw", "claw/1", "x" * 65],
    "OPENCLAW_PRICE": ["-1", "free"],
    "OPENCLAW_TIMEOUT": ["0"],
    "ROUTING_WEIGHT_SPEED": ["-0.1", "high"],
    "ROUTING_TEMPERATURE": ["0", "-1"],
    "ROUTING_HALF_LIFE_S": ["0"],
    "DIALIN_HEARTBEAT_S": ["0", "0.5s", "2h"],
    "DIALIN_WINDOW_BYTES": ["0", "2GiB"],
    "NODE_LISTEN": ["unix:", "nowhere"],
    "NODE_TOKENS_PER_SECOND": ["-1", "fast", "nan"],
}


def test_a_bad_value_is_refused_and_named(problems_of, subtests):
    for name, values in BAD_VALUES.items():
        for value in values:
            with subtests.test(name, value=value[:80]):
                (problem,) = problems_of({f"LCP_GATEWAY_{name}": value})
                assert problem.startswith(f"LCP_GATEWAY_{name}: ")


def test_a_value_of_the_wrong_type_in_the_file_is_refused(problems_of, subtests):
    for line in (
        "http_addr = 8080",
        "max_price_msat = true",
        "max_price_msat = 1.5",
        "timeout_quote_s = false",
        "api_keys = [1]",
        'api_keys = { a = "b" }',
        "model_map = 3",
        'peer_models = { "node:box" = ["m"] }',
        'peer_models = { "02ab" = ["m"] }',
        'peer_models = { "*" = 3 }',
        "model_map = { a = 1 }",
        'model_max_total_msat = { a = "x" }',
        "model_max_total_msat = { a = true }",
        "journal_url = 1",
        "network = 1",
        "preflight = 7",
        "log_level = 1",
        "node_tokens_per_second = true",
        "lcpd_tls_ca = 1",
        "nodes = 3",
        "models = 3",
        "openclaw_price = true",
        "openclaw_node_name = ''",
    ):
        with subtests.test(line):
            (problem,) = problems_of(toml=line + "\n")
            assert problem.startswith(f"/config.toml: {line.split(' ', maxsplit=1)[0]}: ")


def test_a_bad_secret_is_not_repeated(problems_of, subtests):
    for variable, value in (
        ("LCP_GATEWAY_API_KEYS", "sk-hidden-one,sk hidden two"),
        ("OPENAI_SERVE_API_KEYS", "sk-hidden-\u00e9"),
        ("LCP_GATEWAY_LCPD_METADATA", "macaroon hidden"),
        ("LCP_GATEWAY_LCPD_METADATA", "macaroon=hidden\x01"),
        ("LCP_GATEWAY_LCPD_METADATA", "hidden-bin=1"),
        ("LCP_GATEWAY_LCPD_METADATA", "a=hidden;a=hidden"),
        ("LCP_GATEWAY_NODES", '[{"name": "a", "api_key": "hidden"'),
        ("OPENCLAW_API_KEY", "sk hidden"),
        ("OPENCLAW_BASE_URL", "http://hidden@claw:3000"),
        ("OPENCLAW_BASE_URL", "http://user:hid/den@hidden@claw"),
        ("LCP_GATEWAY_NODE_BACKEND", "http://user:hidden@h/v1"),
    ):
        with subtests.test(variable, value=value):
            (problem,) = problems_of({variable: value})
            assert problem.startswith(f"{variable}: ")
            assert "hidden" not in problem


def test_a_long_value_is_cut(problems_of):
    (problem,) = problems_of({"LCP_GATEWAY_HTTP_ADDR": "x" * 10_000})
    assert len(problem) < 300


def test_the_settings_never_print_a_secret():
    settings = Settings(api_keys=("sk-hidden",), lcpd_metadata={"m": "hidden"}, node_backend_api_key="hidden")
    assert "hidden" not in repr(settings)
    assert "hidden" not in str(settings)


def test_a_file_that_was_asked_for_must_exist(tmp_path, problems_of):
    missing = str(tmp_path / "missing.toml")
    (problem,) = problems_of({"LCP_GATEWAY_CONFIG": missing})
    assert problem == "/missing.toml (from LCP_GATEWAY_CONFIG): cannot be read: No such file or directory"


@pytest.mark.parametrize("toml", [b"a = \n", b"x = 1\nx = 2\n", b"\xff = 1\n"])
def test_a_broken_file_is_named(toml, problems_of):
    (problem,) = problems_of(toml=toml)
    assert problem.startswith("/config.toml: ")


def test_certificates_without_tls_are_a_contradiction(tmp_path, problems_of):
    ca = tmp_path / "ca.pem"
    ca.touch()
    (problem,) = problems_of({"LCP_GATEWAY_LCPD_TLS_CA": str(ca)})
    assert problem == "LCP_GATEWAY_LCPD_TLS_CA: has no effect while lcpd_tls is false"


def test_a_certificate_needs_its_key_and_files_must_exist(tmp_path, problems_of):
    found = problems_of({"LCP_GATEWAY_LCPD_TLS": "1", "LCP_GATEWAY_LCPD_TLS_CERT": str(tmp_path / "no.pem")})
    assert found == [
        "LCP_GATEWAY_LCPD_TLS_CERT: a client certificate needs lcpd_tls_key too",
        "LCP_GATEWAY_LCPD_TLS_CERT: no such file: /no.pem",
    ]


def test_a_list_cannot_be_stale_before_it_is_refreshed(problems_of):
    (problem,) = problems_of({"LCP_GATEWAY_PEERS_REFRESH_S": "1m"})
    assert problem.startswith("LCP_GATEWAY_PEERS_REFRESH_S: peers_stale_s (15 s)")


def test_a_choice_needs_something_to_go_by(problems_of):
    names = ("AVAILABILITY", "SPEED", "DELIVERY", "PRICE", "FIT")
    environ = {f"LCP_GATEWAY_ROUTING_WEIGHT_{name}": "0" for name in names}
    assert problems_of(environ) == [
        ("LCP_GATEWAY_ROUTING_WEIGHT_AVAILABILITY: all weights are 0: at least one must be above 0")
    ]


def test_an_embedded_node_needs_a_port(problems_of):
    environ = {"LCP_GATEWAY_EMBEDDED": "1", "LCP_GATEWAY_NODE_LISTEN": "127.0.0.1:0"}
    assert problems_of(environ)[0].startswith("LCP_GATEWAY_NODE_LISTEN: ")


def test_contradictions_about_the_node_over_lnd_are_a_problem(problems_of, tmp_path, subtests):
    macaroon = tmp_path / "m"
    macaroon.touch()
    cases = {
        "set lnd too": {"LCP_GATEWAY_LND_NODE_MACAROON_FILE": str(macaroon)},
        "set lnd_tls_cert": {"LCP_GATEWAY_LND": "127.0.0.1:10009"},
        "leave lnd or embedded out": {"LCP_GATEWAY_LND": "127.0.0.1:10009", "LCP_GATEWAY_EMBEDDED": "1"},
        "set workers = 1": {"LCP_GATEWAY_LND": "127.0.0.1:10009", "LCP_GATEWAY_WORKERS": "2"},
    }
    for says, environ in cases.items():
        with subtests.test(says):
            assert any(says in problem for problem in problems_of(environ))


def test_suspicious_settings_are_a_warning(tmp_path, subtests):
    for environ, words in [
        (
            {"LCP_GATEWAY_HTTP_ADDR": ":8080", "LCP_GATEWAY_ALLOW_OPEN": "1"},
            "spends your money. Clients reach it by a name once allowed_hosts has it",
        ),
        ({"LCP_GATEWAY_CORS_ORIGINS": "*"}, "every web page"),
        ({"LCP_GATEWAY_ALLOWED_HOSTS": "a,*"}, "a web page whose name"),
        ({"LCP_GATEWAY_AUTH": "accounts"}, "customers cannot top up"),
        ({"LCP_GATEWAY_EMBEDDED": "1", "OPENAI_SERVE_LCPD_GRPC_ADDR": "h:1"}, "has no effect"),
    ]:
        with subtests.test(str(environ)):
            (warning,) = load(flags={}, environ={"XDG_CONFIG_HOME": str(tmp_path), **environ}).warnings
            assert words in warning


def test_sound_settings_are_no_warning(tmp_path, subtests):
    for environ in [
        {"LCP_GATEWAY_HTTP_ADDR": "[::1]:80"},
        {"LCP_GATEWAY_HTTP_ADDR": "127.0.0.2:80"},
        {"LCP_GATEWAY_HTTP_ADDR": ":80", "LCP_GATEWAY_API_KEYS": "k", "LCP_GATEWAY_TRUSTED_PROXIES": "10.0.0.7"},
        {"LCP_GATEWAY_HTTP_ADDR": ":80", "LCP_GATEWAY_EMBEDDED": "1", "LCP_GATEWAY_ALLOW_OPEN": "1"},
        {"LCP_GATEWAY_AUTH": "accounts", "LCP_GATEWAY_EMBEDDED": "1"},
    ]:
        with subtests.test(str(environ)):
            assert load(flags={}, environ={"XDG_CONFIG_HOME": str(tmp_path), **environ}).warnings == ()


FEES = {"LCP_GATEWAY_AUTH": "accounts", "LCP_GATEWAY_MARKUP_PERCENT": "10"}


def test_a_markup_that_does_not_cover_the_estimated_fee_is_warned_about(tmp_path, subtests):
    """10 % of a small price is less than the one satoshi that a public hop costs."""
    for environ, words in [
        ({}, "(10% and 0 msat) does not cover the estimated routing fee (1% and 1,000 msat) at pri"),
        ({}, "at prices below 11,112 msat"),
        ({"LCP_GATEWAY_MARKUP_PERCENT": "1"}, "at any price"),
        ({"LCP_GATEWAY_MARKUP_PERCENT": "0", "LCP_GATEWAY_MARKUP_MSAT": "2000"}, "at prices over 100,000 msat"),
        ({"LCP_GATEWAY_FEE_BASE_MSAT": "5000"}, "below 55,556 msat"),
    ]:
        with subtests.test(str(environ)):
            found = load(flags={}, environ={"XDG_CONFIG_HOME": str(tmp_path), **FEES, **environ})
            (warning,) = (it for it in found.warnings if "mark-up" in it)
            assert words in warning and "markup_msat" in warning


def test_the_markup_of_a_model_is_looked_at_by_itself(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(
        'auth = "accounts"\nmarkup_percent = 10\nmarkup_msat = 1000\n'
        "[models.small]\nmarkup_msat = 0\n[models.large]\nmarkup_percent = 30\n"
    )
    found = load(flags={}, environ={}, config_path=path).warnings
    (warning,) = (it for it in found if "mark-up" in it)
    assert "of model 'small' (10% and 0 msat)" in warning


@pytest.mark.parametrize(
    "environ",
    [
        {"LCP_GATEWAY_MARKUP_MSAT": "1000"},
        {"LCP_GATEWAY_FEE_BASE_MSAT": "80", "LCP_GATEWAY_FEE_PPM": "100"},
        {"LCP_GATEWAY_AUTH": "none"},
        {"LCP_GATEWAY_EMBEDDED": "1"},
    ],
)
def test_a_markup_that_covers_the_fee_or_sells_nothing_is_no_warning(environ, tmp_path):
    found = load(flags={}, environ={"XDG_CONFIG_HOME": str(tmp_path), **FEES, **environ})
    assert not [it for it in found.warnings if "mark-up" in it]


def test_a_secret_in_a_file_that_all_may_read_is_a_warning(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('api_keys = ["sk-1"]\n')
    for mode, expected in ((0o644, 1), (0o600, 0)):
        path.chmod(mode)
        loaded = load(flags={}, environ={}, config_path=path)
        assert loaded.settings.api_keys == ("sk-1",)
        assert len(loaded.warnings) == expected


@pytest.mark.parametrize(
    "environ",
    [
        {"LCP_GATEWAY_HTTP_ADDR": ":8080"},
        {"OPENAI_SERVE_HTTP_ADDR": ":8080"},
        {"LCP_GATEWAY_HTTP_ADDR": "192.168.1.2:80", "LCP_GATEWAY_EMBEDDED": "1"},
        {"LCP_GATEWAY_HTTP_ADDR": ":8080", "LCP_GATEWAY_AUTH": "none"},
    ],
)
def test_an_open_address_needs_keys_or_allow_open(environ, problems_of):
    (problem,) = problems_of(environ)
    assert "allow_open" in problem and "HTTP_ADDR" in problem


def test_contradictions_about_access_are_a_problem(problems_of, subtests):
    for environ, words in [
        ({"LCP_GATEWAY_AUTH": "keys"}, "no api_keys are set"),
        ({"LCP_GATEWAY_AUTH": "none", "LCP_GATEWAY_API_KEYS": "k"}, "while auth is none"),
        ({"LCP_GATEWAY_ADMIN_KEY": "k"}, "unless auth is accounts"),
        ({"LCP_GATEWAY_L402": "1"}, "unless auth is accounts"),
        ({"LCP_GATEWAY_AUTH": "accounts", "LCP_GATEWAY_JOURNAL_URL": "off"}, "which is off"),
        (
            {
                "LCP_GATEWAY_AUTH": "accounts",
                "LCP_GATEWAY_TOPUP_MIN_MSAT": "9000",
                "LCP_GATEWAY_TOPUP_MAX_MSAT": "8000",
            },
            "must not be more than",
        ),
        (
            {"LCP_GATEWAY_AUTH": "accounts", "LCP_GATEWAY_L402": "1", "LCP_GATEWAY_TOPUP_MIN_MSAT": "100001"},
            "l402_msat must be from",
        ),
        (
            {"LCP_GATEWAY_AUTH": "accounts", "LCP_GATEWAY_L402": "1", "LCP_GATEWAY_L402_MSAT": "1000000001"},
            "l402_msat must be from",
        ),
    ]:
        with subtests.test(str(environ)):
            (problem,) = problems_of(environ)
            assert words in problem


@pytest.mark.parametrize("count", ["0", "65", "-1", "many", "1.5", ""])
def test_a_number_of_workers_is_auto_or_from_1_to_64(count):
    if count == "":
        assert worker_count(load(flags={}, environ={"LCP_GATEWAY_WORKERS": count}).settings) == 1
        return
    with pytest.raises(ConfigError, match="`auto` or a number from 1 to 64"):
        load(flags={"workers": count}, environ={})


def test_several_workers_need_a_journal():
    assert load(flags={"workers": "1", "journal_url": "off"}, environ={}).settings.workers == 1
    with pytest.raises(ConfigError, match="several workers need a journal"):
        load(flags={"workers": "2", "journal_url": "off"}, environ={})
    assert worker_count(load(flags={"workers": "auto"}, environ={}).settings) >= 1
