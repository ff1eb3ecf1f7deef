"""The environment variables of openai-serve keep their meaning: every name, in the notations it accepted."""

import pytest

from lcp_gateway.config import ConfigError, SourceKind, load, specs

PEER_A = "02" + "aa" * 32
PEER_B = "03" + "bb" * 32

VARIABLES = {
    "OPENAI_SERVE_HTTP_ADDR": ("127.0.0.1:8081", "http_addr", "127.0.0.1:8081"),
    "OPENAI_SERVE_LCPD_GRPC_ADDR": ("lcpd:50051", "lcpd_grpc_addr", "lcpd:50051"),
    "OPENAI_SERVE_LOG_LEVEL": ("debug", "log_level", "debug"),
    "OPENAI_SERVE_API_KEYS": ("k1, k2", "api_keys", ("k1", "k2")),
    "OPENAI_SERVE_DEFAULT_PEER_ID": (PEER_A, "default_peer_id", PEER_A),
    "OPENAI_SERVE_MODEL_MAP": (f"gpt-5={PEER_A}; qwen={PEER_B};", "model_map", {"gpt-5": PEER_A, "qwen": PEER_B}),
    "OPENAI_SERVE_MODEL_ALLOWLIST": ("gpt-5,qwen", "model_allowlist", ("gpt-5", "qwen")),
    "OPENAI_SERVE_ALLOW_UNLISTED_MODELS": ("T", "allow_unlisted_models", True),
    "OPENAI_SERVE_MAX_PRICE_MSAT": ("50000", "max_price_msat", 50_000),
    "OPENAI_SERVE_TIMEOUT_QUOTE": ("1500ms", "timeout_quote_s", 1.5),
    "OPENAI_SERVE_TIMEOUT_EXECUTE": ("2m0s", "timeout_execute_s", 120.0),
}


@pytest.fixture
def nowhere(tmp_path):
    return {"XDG_CONFIG_HOME": str(tmp_path)}


def test_each_variable_has_its_meaning_of_openai_serve(nowhere, subtests):
    for variable, (text, name, expected) in VARIABLES.items():
        with subtests.test(variable):
            loaded = load(flags={}, environ=nowhere | {variable: text})
            assert getattr(loaded.settings, name) == expected
            assert loaded.source_of(name).kind is SourceKind.OPENAI_SERVE
            assert loaded.source_of(name).where == variable


def test_all_of_them_work_together(nowhere):
    environ = nowhere | {variable: text for variable, (text, _, _) in VARIABLES.items()}
    settings = load(flags={}, environ=environ).settings
    assert {name: getattr(settings, name) for _, name, _ in VARIABLES.values()} == {
        name: expected for _, name, expected in VARIABLES.values()
    }


def test_the_defaults_are_those_of_openai_serve(nowhere):
    settings = load(flags={}, environ=nowhere).settings
    assert settings.http_addr == "127.0.0.1:8080"
    assert settings.lcpd_grpc_addr == "127.0.0.1:50051"
    assert settings.timeout_quote_s == 5
    assert settings.timeout_execute_s == 120
    assert settings.max_price_msat == 0


def test_no_other_setting_claims_a_name_of_openai_serve():
    claimed = {spec.openai_serve for spec in specs().values() if spec.openai_serve}
    assert claimed == set(VARIABLES)


def test_a_clients_own_variable_is_ignored_silently(nowhere):
    loaded = load(flags={}, environ=nowhere | {"OPENAI_SERVE_API_KEY": "sk-client"})
    assert loaded.settings.api_keys == ()
    assert loaded.warnings == ()


def test_a_variable_of_older_releases_is_a_warning_and_changes_nothing(nowhere):
    loaded = load(flags={}, environ=nowhere | {"OPENAI_SERVE_MAX_PROMPT_BYTES": "9"})
    assert loaded.settings == load(flags={}, environ=nowhere).settings
    assert len(loaded.warnings) == 1
    assert "OPENAI_SERVE_MAX_PROMPT_BYTES" in loaded.warnings[0]


def test_an_unknown_variable_is_an_error_with_the_nearest_name(nowhere):
    with pytest.raises(ConfigError) as caught:
        load(flags={}, environ=nowhere | {"OPENAI_SERVE_TIMEOUT_QOUTE": "5s"})
    assert caught.value.problems == [
        ("OPENAI_SERVE_TIMEOUT_QOUTE: unknown environment variable; did you mean OPENAI_SERVE_TIMEOUT_QUOTE?")
    ]
