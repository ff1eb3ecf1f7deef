import pytest

from lcp_gateway.node.settings.loading import load_settings, read_api_key
from lcp_gateway.node.settings.model import BackendSettings, LndSettings, NodeSettings
from lcp_gateway.node.toml import ConfigError

LND = {
    "LCPD_LND_RPC_ADDR": "127.0.0.1:10009",
    "LCPD_LND_TLS_CERT_PATH": "/lnd/tls.cert",
    "LCPD_LND_ADMIN_MACAROON_PATH": "/lnd/admin.macaroon",
}
OPENAI = {"LCPD_BACKEND": "openai", "LCPD_OPENAI_API_KEY": "sk-secret"}
PROVIDER = """
enabled: true
llm: {models: {m: {price: {input_msat_per_mtok: 3, output_msat_per_mtok: 4}}}}
"""
SELLER = """
[sell]
ttl_s = 60
[[sell.models]]
name = "n"
input_msat_per_mtok = 1
output_msat_per_mtok = 2
[[sell.backends]]
kind = "echo"
"""


@pytest.fixture
def files(tmp_path):
    """Writes files and returns their paths."""

    def write(name, text):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def load(file=None, environ=None, flags=None, folder=None):
    return load_settings(file, environ or {}, flags or {}, folder=folder)


def test_nothing_set_is_the_default():
    assert load() == NodeSettings()


def test_the_environment_of_the_daemon_makes_a_buyer():
    settings = load(
        environ={**LND, "LCPD_LOG_LEVEL": "warn", "LCPD_LND_MANIFEST_RESEND_INTERVAL": "1m30s", "LCPD_BACKEND": "none"}
    )

    assert (settings.lnd.grpc_addr, str(settings.lnd.tls_cert)) == ("127.0.0.1:10009", "/lnd/tls.cert")
    assert str(settings.lnd.macaroon_file) == "/lnd/admin.macaroon"
    assert (settings.log_level, settings.manifest_resend_s) == ("warning", 90.0)
    assert not settings.sell.active


def test_the_other_name_of_the_macaroon_counts_where_the_first_is_empty():
    environ = {"LCPD_LND_ADMIN_MACAROON_PATH": "", "LCPD_LND_MACAROON_PATH": "/other"}

    assert str(load(environ=environ).lnd.macaroon_file) == "/other"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10), ("1h", 3600), ("500ms", 0.5), ("1.5m", 90), ("0", 0), ("-5s", 0), ("", 0), ("2\u00b5s", 2e-6)],
)
def test_the_resend_interval_is_a_duration_of_go_and_off_below_zero(text, seconds):
    assert load(environ={"LCPD_LND_MANIFEST_RESEND_INTERVAL": text}).manifest_resend_s == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["10", "soon", "1s2", "s"])
def test_a_resend_interval_that_is_no_duration_stops_the_start(text):
    with pytest.raises(ConfigError, match=r"^LCPD_LND_MANIFEST_RESEND_INTERVAL: must be a duration"):
        load(environ={"LCPD_LND_MANIFEST_RESEND_INTERVAL": text})


def test_the_environment_and_the_provider_yaml_make_a_seller(files):
    path = files("provider.yaml", PROVIDER)

    sell = load(environ={**LND, **OPENAI, "LCPD_PROVIDER_CONFIG_PATH": str(path)}).sell

    assert sell.active
    assert sell.sold["m"].max_output_tokens == 4_096
    assert sell.backends == (BackendSettings(url="https://api.openai.com/v1", api_key="sk-secret"),)


def test_a_config_yaml_in_the_working_directory_is_read_unless_there_is_a_toml_file(files, tmp_path):
    files("config.yaml", PROVIDER)
    environ = {**LND, **OPENAI}

    assert load(environ=environ, folder=tmp_path).sell.active
    assert not load(files("node.toml", ""), environ, folder=tmp_path).sell.active
    assert not load(environ=environ).sell.active


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/api/v1/", "http://127.0.0.1:8000/api/v1"),
    ],
)
def test_the_base_url_gets_the_version_that_it_lacks(base, url):
    environ = {"LCPD_BACKEND": "openai", "OPENAI_API_KEY": "k", "LCPD_OPENAI_BASE_URL": base}

    assert load(environ=environ).sell.backends[0].url == url


@pytest.mark.parametrize(("text", "output"), [("", b"deterministic-output"), ("aGk=", b"hi")])
def test_the_deterministic_backend_has_its_output(text, output):
    environ = {"LCPD_BACKEND": "deterministic", "LCPD_DETERMINISTIC_OUTPUT_BASE64": text}

    assert load(environ=environ).sell.backends[0].output == output


@pytest.mark.parametrize(
    ("environ", "complaint"),
    [
        ({"LCPD_BACKEND": "openai"}, "LCPD_OPENAI_API_KEY: missing"),
        ({"LCPD_BACKEND": "magic"}, "LCPD_BACKEND: must be"),
        (
            {"LCPD_BACKEND": "deterministic", "LCPD_DETERMINISTIC_OUTPUT_BASE64": "!"},
            r"sell.backends\[0\]: output_base64: must be base64",
        ),
        ({**OPENAI, "LCPD_OPENAI_BASE_URL": "ftp://x"}, r"sell.backends\[0\]: url: must be an http"),
        ({"LCPD_PROVIDER_CONFIG_PATH": "/gone.yaml"}, "/gone.yaml: No such file"),
    ],
)
def test_a_wrong_variable_stops_the_start(environ, complaint):
    with pytest.raises(ConfigError, match=f"^{complaint}") as caught:
        load(environ=environ)

    assert "sk-secret" not in str(caught.value)


def test_an_enabled_provider_needs_a_backend(files):
    environ = {"LCPD_PROVIDER_CONFIG_PATH": str(files("provider.yaml", PROVIDER))}

    with pytest.raises(ConfigError, match=r"sell: backends: missing: .*LCPD_BACKEND"):
        load(environ={**environ, **LND})


@pytest.mark.parametrize(
    ("environ", "slack_s"),
    [
        ({}, 5),
        ({"LCP_ALLOWED_CLOCK_SKEW_SECONDS": "7"}, 7),
        ({"LCP_ALLOWED_CLOCK_SKEW_SECONDS": "7", "LCP_INVOICE_EXPIRY_SLACK_SECONDS": "9"}, 9),
        ({"LCP_ALLOWED_CLOCK_SKEW_SECONDS": "7", "LCP_INVOICE_EXPIRY_SLACK_SECONDS": "x"}, 7),
        ({"LCP_INVOICE_EXPIRY_SLACK_SECONDS": "-1"}, 5),
    ],
)
def test_the_slack_of_invoices_falls_back_silently(environ, slack_s):
    assert load(environ=environ).sell.terms.invoice_slack_s == slack_s


def test_flags_come_before_the_file_and_the_file_before_the_environment(files):
    file = files("node.toml", 'log_level = "error"\n[buy]\nfee_limit_msat = 1\nmax_price_msat = 2\n')

    settings = load(file, {"LCPD_LOG_LEVEL": "debug"}, {"buy": {"fee_limit_msat": 3}})

    assert settings.log_level == "error"
    assert (settings.buy.fee_limit_msat, settings.buy.max_price_msat) == (3, 2)


@pytest.mark.parametrize("flags", [{}, {"lnd": {"grpc_addr": "host:1"}}])
def test_an_lnd_that_is_set_elsewhere_takes_no_file_of_the_environments_lnd(files, flags):
    file = None if flags else files("node.toml", '[lnd]\ngrpc_addr = "host:1"\n')

    settings = load(file, {**LND, "LCPD_LND_MANIFEST_RESEND_INTERVAL": "10s"}, flags)

    assert settings.lnd == LndSettings(grpc_addr="host:1")
    assert settings.manifest_resend_s == 0


def test_a_flag_changes_one_key_of_the_files_lnd(files):
    file = files("node.toml", '[lnd]\ngrpc_addr = "host:1"\ntls_cert = "cert"\n')

    lnd = load(file, LND, {"lnd": {"grpc_addr": "host:2"}}).lnd

    assert (lnd.grpc_addr, str(lnd.tls_cert)) == ("host:2", "cert")


def test_models_and_backends_of_the_file_leave_those_of_the_environment_unread(files):
    file = files("node.toml", SELLER)
    broken = {"LCPD_BACKEND": "magic", "LCPD_PROVIDER_CONFIG_PATH": "/gone.yaml"}

    sell = load(file, {**LND, **broken}).sell

    assert [model.name for model in sell.models] == ["n"]
    assert [backend.kind for backend in sell.backends] == ["echo"]


def test_the_file_adds_to_the_models_of_the_provider_yaml(files):
    environ = {**LND, **OPENAI, "LCPD_PROVIDER_CONFIG_PATH": str(files("provider.yaml", PROVIDER))}

    sell = load(files("node.toml", "[sell]\nttl_s = 60\nhold_invoices = true\n"), environ).sell

    assert sell.active
    assert (sell.ttl_s, sell.terms.hold) == (60, True)


@pytest.mark.parametrize("text", ["sell = 3", "[sell]\nmodels = 3"])
def test_a_table_of_the_wrong_kind_is_named(files, text):
    with pytest.raises(ConfigError, match=r"^sell(.models)?: must be a (table|list)"):
        load(files("node.toml", text), OPENAI)


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"gone.toml: No such file"):
        load(tmp_path / "gone.toml")


def test_an_api_key_is_its_own_or_that_of_a_file(files):
    file = files("key", "sk-of-a-file\n")

    assert read_api_key(BackendSettings(url="http://h/v1", api_key="sk-own")) == "sk-own"
    assert read_api_key(BackendSettings(url="http://h/v1")) == ""
    assert read_api_key(BackendSettings(url="http://h/v1", api_key_file=file)) == "sk-of-a-file"


@pytest.mark.parametrize("text", ["", "\n", "two\nlines", "k\u00e9y"])
def test_a_key_file_without_one_line_of_ascii_stops_the_start(files, text):
    backend = BackendSettings(name="b", url="http://h/v1", api_key_file=files("key", text))

    with pytest.raises(ConfigError, match=r'^sell.backends "b": api_key_file: .*: must hold one line of ASCII'):
        read_api_key(backend)


def test_a_key_file_that_is_missing_is_named(tmp_path):
    backend = BackendSettings(name="b", url="http://h/v1", api_key_file=tmp_path / "gone")

    with pytest.raises(ConfigError, match=r"api_key_file: .*gone: No such file"):
        read_api_key(backend)
