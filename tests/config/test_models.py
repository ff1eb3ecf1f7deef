"""The models of the configuration: how they are read, and which names are refused."""

import json

import pytest

from lcp_gateway.config import ConfigError, ModelConfig, Settings, load, specs, written


@pytest.fixture
def read(tmp_path):
    def attempt(toml):
        path = tmp_path / "config.toml"
        path.write_text(toml)
        return load(flags={}, environ={}, config_path=path)

    return attempt


@pytest.fixture
def problems_of(read, tmp_path):
    def attempt(toml):
        with pytest.raises(ConfigError) as caught:
            read(toml)
        start = f"{tmp_path}/config.toml: models: "
        assert all(problem.startswith(start) for problem in caught.value.problems)
        return [problem.removeprefix(start) for problem in caught.value.problems]

    return attempt


def test_a_model_is_a_table_of_the_file(read):
    loaded = read(
        """
        [models."qwen2.5-coder:14b"]
        type = "chat"
        context_length = 32768
        params_b = 14.8
        capabilities = ["code", "tools", "our-own_1"]
        owned_by = "qwen"
        aliases = ["gpt-4o-mini", "coder", "qwen2.5-coder:14b"]
        max_price_msat = 1000
        max_total_msat = 2000
        default_temperature = 0
        default_max_tokens = 512

        [models."nomic/embed"]
        type = "embedding"
        dimensions = 768
        capabilities = []

        [models.auto]
        aliases = ["default"]
        """
    )
    assert loaded.warnings == ()
    assert loaded.settings.models == {
        "qwen2.5-coder:14b": ModelConfig(
            type="chat",
            context_length=32_768,
            dimensions=0,
            params_b=14.8,
            capabilities=("code", "tools", "our-own_1"),
            owned_by="qwen",
            aliases=("gpt-4o-mini", "coder", "qwen2.5-coder:14b"),
            max_price_msat=1_000,
            max_total_msat=2_000,
            default_temperature=0.0,
            default_max_tokens=512,
        ),
        "nomic/embed": ModelConfig(type="embedding", dimensions=768, capabilities=()),
        "auto": ModelConfig(aliases=("default",)),
    }


def test_every_problem_names_its_place(problems_of):
    found = problems_of(
        """
        [models."a.b"]
        type = "image"
        context_length = -1
        dimensions = 1.5
        params_b = "7b"
        capabilities = ["Code"]
        owned_by = 1
        aliases = 2
        max_price_msat = -1
        max_total_msat = true
        default_temperature = 2.1
        default_max_tokens = 0
        temperature = 1

        [models.gpt]
        file = "./models/gpt.gguf"

        [models.""]
        """
    )
    assert [problem.partition(": ")[0] for problem in found] == [
        *(f'models["a.b"].{name}' for name in (
            "type", "context_length", "dimensions", "params_b", "capabilities", "owned_by", "aliases",
            "max_price_msat", "max_total_msat", "default_temperature", "default_max_tokens", "temperature",
        )),
        "models.gpt.file",
        'models[""]',
    ]  # fmt: skip
    assert "models.gpt.file: unknown key" in found
    assert any(problem.endswith(".temperature: unknown key; did you mean default_temperature?") for problem in found)


def test_a_name_means_one_thing(problems_of, subtests):
    for toml, problem in [
        ('[models.a]\naliases = ["x"]\n[models.b]\naliases = ["x"]\n', "'x' is an alias of both 'a' and 'b'"),
        ('[models.a]\naliases = ["b"]\n[models.b]\n', "'b' is an alias of 'a' and the name of another model"),
        ('[models.auto]\naliases = ["b"]\n[models.b]\n', "'b' is an alias of 'auto' and the name of another model"),
        ('[models.a]\naliases = ["auto"]\n', "'auto' cannot be an alias: it means a choice of the gateway"),
        ('[models.a]\naliases = ["auto:cheap"]\n', "'auto:cheap' cannot be an alias: it means a choice of the gateway"),
        ("[models.auto]\nparams_b = 7\n", "auto is no model: it may have nothing but aliases"),
        ('[models."auto:cheap"]\n', "'auto:cheap' cannot be described: it is a way to choose a model"),
    ]:
        with subtests.test(str(toml)):
            assert problems_of(toml) == [problem]


def test_models_hold_no_secret_and_are_shown_without_defaults():
    spec = specs()["models"]
    settings = Settings(models={"gpt": ModelConfig(type="chat", capabilities=(), aliases=("x",))})
    shown = spec.shown(settings.models)
    assert shown == {"gpt": {"type": "chat", "capabilities": (), "aliases": ("x",)}}
    assert written(shown) == '{ "gpt" = { "type" = "chat", "capabilities" = [], "aliases" = ["x"] } }'
    assert json.loads(json.dumps(shown))["gpt"]["aliases"] == ["x"]
    assert not spec.is_secret_when(settings.models)
    assert not spec.is_secret_when('{"gpt": {}}')
