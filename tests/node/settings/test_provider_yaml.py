import builtins
from contextlib import suppress

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.node.settings.provider_yaml import read_provider_yaml
from lcp_gateway.node.toml import ConfigError

PRICE = "price: {input_msat_per_mtok: 3, output_msat_per_mtok: 4}"
PRICED = {"input_msat_per_mtok": 3, "output_msat_per_mtok": 4}


@pytest.fixture
def read(tmp_path):
    def read(text):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return read_provider_yaml(path)

    return read


@pytest.mark.parametrize("text", ["", "# nothing", "enabled: false", "enabled: no\nllm: {models: {m: {}}}", "llm:"])
def test_a_provider_that_is_not_enabled_does_not_sell_and_its_models_are_not_judged(read, text):
    assert read(text) == {"enabled": False}


def test_a_whole_file_is_read_and_unknown_keys_are_ignored(read):
    text = """
enabled: true
quote_ttl_seconds: 60
a_later_key: [1, {b: 2}]
pricing:
  in_flight_surge: {threshold: 2, per_job_bps: 500, max_multiplier_bps: 20000, unknown: x}
llm:
  max_output_tokens: 1_000
  models:
    small:
      max_output_tokens: 10
      price:
        input_msat_per_mtok: 1750000
        output_msat_per_mtok: 14000000
        cached_input_msat_per_mtok: 175000
    second: {model: " org/second ", profile: third, price: {input_msat_per_mtok: 3, output_msat_per_mtok: 4}}
    fourth: {profile: fifth, price: {input_msat_per_mtok: 3, output_msat_per_mtok: 4}}
"""
    assert read(text) == {
        "enabled": True,
        "ttl_s": 60,
        "max_output_tokens": 1_000,
        "surge": {"threshold": 2, "per_job_bps": 500, "max_multiplier_bps": 20_000},
        "models": [
            {
                "name": "small",
                "max_output_tokens": 10,
                "input_msat_per_mtok": 1_750_000,
                "output_msat_per_mtok": 14_000_000,
            },
            {"name": "org/second", **PRICED},
            {"name": "fifth", **PRICED},
        ],
    }


@pytest.mark.parametrize("zeros", ["", "quote_ttl_seconds: 0\n", "quote_ttl_seconds:\nllm_: {}\n"])
def test_zero_and_nothing_are_the_defaults(read, zeros):
    found = read(f"enabled: true\n{zeros}llm: {{max_output_tokens: 0, models: {{m: {{{PRICE}}}}}}}")

    assert found == {
        "enabled": True,
        "ttl_s": 300,
        "max_output_tokens": 4_096,
        "surge": {},
        "models": [{"name": "m", **PRICED}],
    }


def test_a_name_that_yaml_takes_for_a_number_or_a_boolean_is_text(read):
    found = read(f"enabled: on\nllm: {{models: {{4.5: {{{PRICE}}}, on: {{{PRICE}}}, 2024-01-01: {{{PRICE}}}}}}}")

    assert [model["name"] for model in found["models"]] == ["4.5", "on", "2024-01-01"]


def test_anchors_and_merge_keys_work(read):
    found = read(
        f"enabled: true\nbase: &base {{{PRICE}, max_output_tokens: 5}}\n"
        "llm: {models: {a: *base, b: {<<: *base, max_output_tokens: 6}}}"
    )

    assert [model["max_output_tokens"] for model in found["models"]] == [5, 6]


@pytest.mark.parametrize(
    "models",
    [
        f"llm: {{chat_profiles: {{m: {{{PRICE}}}}}}}",
        f"llm: {{models: {{}}, chat_profiles: {{m: {{{PRICE}}}}}}}",
        "supported_models: [m]\nllm: {price_table: {m: {input_msat_per_mtok: 3, output_msat_per_mtok: 4}}}",
        "supported_llm_chat_profiles: [' m ', '']\nllm: {price_table: {m: {input_msat_per_mtok: 3, output_msat_per_mtok: 4}}}",
        "supported_models: [m]\nsupported_llm_chat_profiles: [n]\nllm: {price_table: {m: {input_msat_per_mtok: 3, output_msat_per_mtok: 4}}}",
        "llm: {models: {m: {}}, price_table: {m: {input_msat_per_mtok: 3, output_msat_per_mtok: 4}}}",
        f"supported_models: [n]\nllm: {{models: {{m: {{{PRICE}}}}}}}",
    ],
)
def test_old_forms_and_the_price_table_are_read(read, models):
    assert read(f"enabled: true\n{models}")["models"] == [{"name": "m", **PRICED}]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("llm: {models: {m: {}}}", 'model "m" has no price: set llm.models.<key>.price'),
        ("supported_models: [m]", 'model "m" has no price'),
        ("", "llm.models: missing: name the models"),
        ("llm: {price_table: {m: {input_msat_per_mtok: 3}}}", "llm.price_table: there are prices and no models"),
        ("llm: {models: {m: {max_output_tokens: 0}}}", "llm.models.m.max_output_tokens: must be above 0"),
        (
            "llm: {models: {m: {price: {input_msat_per_mtok: 3}}}}",
            "llm.models.m.price.output_msat_per_mtok: must be above 0",
        ),
        (
            "supported_models: [m]\nllm: {price_table: {m: {input_msat_per_mtok: 0, output_msat_per_mtok: 1}}}",
            "llm.price_table.m.input_msat_per_mtok: must be above 0",
        ),
        ("quote_ttl_seconds: soon", "quote_ttl_seconds: must be a whole number"),
        ("quote_ttl_seconds: -1", "quote_ttl_seconds: must be a whole number"),
        ("quote_ttl_seconds: 1.5", "quote_ttl_seconds: must be a whole number"),
        ("quote_ttl_seconds: [1]", "quote_ttl_seconds: must be a whole number"),
        ("llm: 3", "llm: must be a mapping"),
        ("llm: {models: [m]}", "llm.models: must be a mapping"),
        ("llm: {models: {m: 3}}", "llm.models.m: must be a mapping"),
        ("supported_models: m", "supported_models: must be a list of names"),
        ("llm: {models: {m: {model: [x]}}}", "llm.models.m.model: must be text"),
        ("llm: {models: {m: {}, m: {}}}", 'no YAML, line 2: key "m" comes twice'),
        ("llm: {", "no YAML, line 2: "),
        ("llm: *nowhere", "no YAML, line 2: found undefined alias"),
    ],
)
def test_what_stops_the_start_names_the_file_and_the_key(read, tmp_path, text, complaint):
    with pytest.raises(ConfigError) as caught:
        read(f"enabled: true\n{text}")

    assert str(caught.value).startswith(f"{tmp_path}/config.yaml: {complaint}")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("enabled: perhaps", "enabled: must be true or false"), ("- enabled", "the document: must be")],
)
def test_a_document_that_is_none_is_refused(read, text, complaint):
    with pytest.raises(ConfigError, match=complaint):
        read(text)


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"gone.yaml: No such file or directory"):
        read_provider_yaml(tmp_path / "gone.yaml")


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "config.yaml").write_bytes(b"enabled: \xff\xfe\x00")

    with pytest.raises(ConfigError, match=r"config.yaml: no YAML"):
        read_provider_yaml(tmp_path / "config.yaml")


def test_without_the_library_the_error_says_what_to_install(read, monkeypatch):
    real = builtins.__import__

    def fake(name, *arguments, **named):
        if name == "lcp_gateway.node.settings.yaml_text":
            raise ImportError
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", fake)

    with pytest.raises(ConfigError, match=r"YAML needs PyYAML: pip install 'lcp-gateway\[lnd\]'"):
        read("enabled: true")


KEYS = st.sampled_from(
    [
        "enabled",
        "llm",
        "models",
        "chat_profiles",
        "price",
        "price_table",
        "supported_models",
        "max_output_tokens",
        "input_msat_per_mtok",
        "output_msat_per_mtok",
        "quote_ttl_seconds",
        "pricing",
        "in_flight_surge",
        "threshold",
        "m",
    ]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates()
DOCUMENTS = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=6))


@given(document=DOCUMENTS)
def test_whatever_a_document_holds_it_is_read_or_refused_with_the_name_of_the_file(tmp_path_factory, document):
    path = tmp_path_factory.mktemp("yaml") / "config.yaml"
    if isinstance(document, dict):
        document = {**document, "enabled": True}
    path.write_text(yaml.safe_dump(document))

    refusal = ""
    try:
        assert read_provider_yaml(path)["enabled"] in {True, False}
    except ConfigError as error:
        refusal = str(error)
    assert not refusal or refusal.startswith(f"{path}: ")


@pytest.mark.parametrize(
    "text",
    [
        "a: !!int x",
        "a: !!bool x",
        "a: !!timestamp x",
        "a: !!python/object:os.system {}",
        "? [a, b]\n: c",
        "&a [*a]",
        "[" * 5_000,
        "\0",
        "%YAML 9",
    ],
)
def test_tags_and_odd_documents_are_read_as_text_or_refused(read, text):
    with suppress(ConfigError):
        assert read(f"enabled: false\n{text}") == {"enabled": False}
