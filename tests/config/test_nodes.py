"""The nodes of the configuration: how they are read, what is refused, and that no key is ever shown."""

import json

import pytest

from lcp_gateway.config import ConfigError, NodeConfig, Settings, SourceKind, all_nodes, load, specs, written
from lcp_gateway.config.addresses import parse_base_url

KEY = "sk-do-not-print"
BOX = '[[nodes]]\nname = "box"\nbase_url = "http://127.0.0.1:11434"\n'


@pytest.fixture
def read(tmp_path):
    """Load a TOML file that only its owner may read, and an environment."""

    def attempt(toml="", environ=(), mode=0o600):
        path = tmp_path / "config.toml"
        path.write_text(toml)
        path.chmod(mode)
        return load(flags={}, environ=dict(environ), config_path=path)

    return attempt


@pytest.fixture
def problems_of(read, tmp_path):
    def attempt(*arguments, **named):
        with pytest.raises(ConfigError) as caught:
            read(*arguments, **named)
        return [problem.replace(str(tmp_path), "") for problem in caught.value.problems]

    return attempt


def test_a_node_is_a_table_of_the_file(read):
    loaded = read(
        """
        [[nodes]]
        name = "box"
        base_url = "http://127.0.0.1:11434/"

        [[nodes]]
        name = "cloud.1"
        base_url = "https://api.example.com/openai/v2/"
        api_key = "sk-do-not-print"
        price_per_request_msat = 10
        price_per_1k_input_msat = 20
        price_per_1k_output_msat = 30
        price_per_minute_sat = 0.5
        max_output_tokens = 100
        timeout_s = "1m30s"
        models = ["a", "b"]
        owned_by = "someone"
        endpoints = ["chat", "responses", "completions", "embeddings"]
        max_connections = 4
        """
    )
    assert loaded.settings.nodes == (
        NodeConfig("box", "http://127.0.0.1:11434/v1"),
        NodeConfig(
            name="cloud.1",
            base_url="https://api.example.com/openai/v2",
            api_key=KEY,
            api_key_file=None,
            price_per_request_msat=10,
            price_per_1k_input_msat=20,
            price_per_1k_output_msat=30,
            price_per_minute_sat=0.5,
            max_output_tokens=100,
            timeout_s=90.0,
            models=("a", "b"),
            owned_by="someone",
            endpoints=("chat", "responses", "completions", "embeddings"),
            max_connections=4,
        ),
    )
    assert loaded.warnings == ()
    assert all_nodes(loaded.settings) == loaded.settings.nodes


def test_the_environment_holds_nodes_as_json(read):
    value = json.dumps([{"name": "a", "base_url": "https://a", "timeout_s": 5}])
    loaded = read(BOX, {"LCP_GATEWAY_NODES": value})
    assert loaded.settings.nodes == (NodeConfig("a", "https://a/v1", timeout_s=5.0),)
    assert loaded.source_of("nodes").kind is SourceKind.ENVIRONMENT


def test_a_base_url_ends_without_a_slash_and_has_a_path(subtests):
    for given, expected in [
        ("http://h", "http://h/v1"),
        ("http://h/", "http://h/v1"),
        ("http://h:8000//", "http://h:8000/v1"),
        ("HTTPS://h/v1/", "https://h/v1"),
        ("http://h/api/openai", "http://h/api/openai"),
        ("http://[::1]:80/v1", "http://[::1]:80/v1"),
        (" http://h ", "http://h/v1"),
    ]:
        with subtests.test(str(given)):
            assert parse_base_url(given) == expected


def test_a_bad_base_url_is_refused_and_not_repeated(subtests):
    for given in [
        1,
        "",
        "h",
        "h:80",
        "ftp://h",
        "http://",
        "http:///v1",
        "http://:80",
        "http://h:port",
        "http://h:99999",
        "http://h:0",
        "http://[::1",
        "http://u@h",
        "http://u:p@h",
        "http://@h",
        "http://h?",
        "http://h/v1?a=b",
        "http://h/v1#",
        "http://h/a b",
        "http://h/\nv1",
    ]:
        with subtests.test(str(given)):
            with pytest.raises(ValueError, match=r"^(must be|a key or a password)") as caught:
                parse_base_url(given)
            assert "@" not in str(caught.value)


def test_every_problem_names_its_place_and_all_are_reported_at_once(problems_of):
    found = problems_of(
        BOX
        + """
        [[nodes]]
        name = "a b"
        base_url = "http://u:sk-do-not-print@h"
        api_key = "sk-do-not-print\\u00e9"
        price_per_request_msat = -1
        price_per_minute_sat = "free"
        max_output_tokens = 0
        timeout_s = 0
        models = [1]
        owned_by = 2
        endpoints = []
        max_connections = 1.5
        timeout = 5

        [[nodes]]
        endpoints = ["chat", "images"]
        """
    )
    start = "/config.toml: nodes: "
    assert all(problem.startswith(start) for problem in found)
    places = [problem.removeprefix(start).partition(":")[0] for problem in found]
    assert places == [
        *(
            f"nodes[1].{name}"
            for name in (
                "name",
                "base_url",
                "api_key",
                "price_per_request_msat",
                "price_per_minute_sat",
                "max_output_tokens",
                "timeout_s",
                "models",
                "owned_by",
                "endpoints",
                "max_connections",
                "timeout",
            )
        ),
        *(f"nodes[2].{name}" for name in ("name", "base_url", "endpoints")),
    ]
    assert f"{start}nodes[1].timeout: unknown key; did you mean timeout_s?" in found
    assert f"{start}nodes[2].name: is missing" in found
    assert "use api_key" in found[1]
    assert KEY not in " ".join(found)


def test_a_name_stands_once(problems_of):
    assert problems_of(BOX + BOX) == ["/config.toml: nodes: two nodes are called 'box'"]


def test_the_first_line_of_a_file_is_the_key(read, tmp_path):
    file = tmp_path / "key"
    file.write_text(f"  {KEY} \nsomething else\n")
    file.chmod(0o600)
    loaded = read(BOX + f'api_key_file = "{file}"\n', mode=0o644)
    (node,) = loaded.settings.nodes
    assert (node.api_key, node.api_key_file) == (KEY, file)
    assert loaded.warnings == ()
    assert Settings(nodes=loaded.settings.nodes).nodes == loaded.settings.nodes


def test_a_key_file_that_others_may_read_is_a_warning(read, tmp_path):
    file = tmp_path / "key"
    file.write_text(KEY)
    file.chmod(0o644)
    (warning,) = read(BOX + f'api_key_file = "{file}"\n').warnings
    assert warning == f"{file} holds a secret and other users may read it: chmod 600"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "is empty"),
        (b"\nsk-do-not-print\n", "is empty"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"sk-do-not-print \x01", "holds a character that no header can carry"),
    ],
)
def test_a_key_file_that_gives_no_key_is_a_problem(content, reason, problems_of, tmp_path):
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    (problem,) = problems_of(BOX + f'api_key_file = "{file}"\n')
    assert problem.startswith("/config.toml: nodes: nodes[0]: api_key_file: ")
    assert reason in problem
    assert KEY not in problem


def test_a_key_and_a_key_file_exclude_each_other(problems_of):
    assert problems_of(BOX + f'api_key = "{KEY}"\napi_key_file = "key"\n') == [
        "/config.toml: nodes: nodes[0]: api_key and api_key_file exclude each other"
    ]


def test_no_key_is_shown(read):
    settings = read(BOX + f'api_key = "{KEY}"\nmodels = ["a"]\n', {"OPENCLAW_API_KEY": KEY}).settings
    spec = specs()["nodes"]
    shown = spec.shown(settings.nodes)
    assert shown == (
        {"name": "box", "base_url": "http://127.0.0.1:11434/v1", "api_key": "(redacted)", "models": ("a",)},
    )
    for text in (repr(settings), str(settings), json.dumps(shown), written(shown)):
        assert KEY not in text
    assert written(shown).startswith('[{ "name" = "box", ')


def test_a_key_file_is_shown_by_its_path(tmp_path):
    node = NodeConfig("a", "http://a/v1", api_key=KEY, api_key_file=tmp_path)
    (shown,) = specs()["nodes"].shown((node,))
    assert (shown["api_key"], shown["api_key_file"]) == ("(redacted)", str(tmp_path))


def test_only_a_node_with_a_key_makes_the_file_a_secret(read):
    assert read(BOX, mode=0o644).warnings == ()
    (warning,) = read(BOX + f'api_key = "{KEY}"\n', mode=0o644).warnings
    assert warning.endswith("holds a secret and other users may read it: chmod 600")


def test_a_key_that_travels_unencrypted_is_a_warning(read, subtests):
    for url, key, warned in [
        ("http://box", KEY, True),
        ("http://192.168.1.2:80/v1", KEY, True),
        ("http://box", "", False),
        ("https://box", KEY, False),
        ("http://127.0.0.5:80", KEY, False),
        ("http://localhost", KEY, False),
        ("http://[::1]:80", KEY, False),
    ]:
        with subtests.test(str(url)):
            value = json.dumps([{"name": "a", "base_url": url, "api_key": key}])
            openclaw = {
                "OPENCLAW_ENABLED": "1",
                "OPENCLAW_BASE_URL": url,
                "OPENCLAW_API_KEY": key,
                "OPENCLAW_NODE_NAME": "a",
            }
            for environ in ({"LCP_GATEWAY_NODES": value}, openclaw):
                warnings = read(environ=environ).warnings
                assert len(warnings) == warned
                assert all("the key of node a travels unencrypted" in warning for warning in warnings)
                assert KEY not in " ".join(warnings)


def test_a_model_may_be_mapped_to_a_node(read):
    settings = read(
        'default_peer_id = "node:box"\n[model_map]\n"a=b" = "node:Box2"\n' + BOX + BOX.replace("box", "Box2")
    ).settings
    assert settings.default_peer_id == "node:box"
    assert settings.model_map == {"a=b": "node:Box2"}
    environ = {"LCP_GATEWAY_MODEL_MAP": "a=b=node:box"}
    assert read(BOX, environ).settings.model_map == {"a=b": "node:box"}


def test_a_node_that_is_not_configured_cannot_be_named(problems_of):
    assert problems_of('default_peer_id = "node:other"\n[model_map]\ngpt = "node:bax"\n' + BOX) == [
        "/config.toml: model_map: the provider of model 'gpt': no node is called 'bax'; did you mean box?",
        "/config.toml: default_peer_id: no node is called 'other'",
    ]


# -- OpenClaw -------------------------------------------------------------------------------------

OPENCLAW = {
    "OPENCLAW_ENABLED": "true",
    "OPENCLAW_BASE_URL": "http://claw.lan:18789",
    "OPENCLAW_API_KEY": "",
    "OPENCLAW_NODE_NAME": "OpenClaw",
    "OPENCLAW_PRICE": "0",
    "OPENCLAW_TIMEOUT": "120",
}


def test_the_environment_of_openclaw_makes_a_node(read):
    loaded = read(BOX, OPENCLAW)
    assert loaded.warnings == ()
    assert [node.name for node in loaded.settings.nodes] == ["box"]
    _, openclaw = all_nodes(loaded.settings)
    assert openclaw == NodeConfig("OpenClaw", "http://claw.lan:18789/v1", owned_by="OpenClaw", endpoints=("chat",))


def test_openclaw_can_have_a_key_a_name_and_a_price(read):
    environ = OPENCLAW | {
        "OPENCLAW_BASE_URL": "https://claw/v1/",
        "OPENCLAW_API_KEY": KEY,
        "OPENCLAW_NODE_NAME": "Claw",
        "OPENCLAW_PRICE": "1.5",
        "OPENCLAW_TIMEOUT": "30s",
        "LCP_GATEWAY_MODEL_MAP": "gpt=node:Claw",
    }
    assert all_nodes(read(environ=environ).settings) == (
        NodeConfig(
            "Claw",
            "https://claw/v1",
            api_key=KEY,
            price_per_minute_sat=1.5,
            timeout_s=30.0,
            owned_by="Claw",
            endpoints=("chat",),
        ),
    )


def test_openclaw_that_is_not_enabled_is_no_node(read):
    loaded = read(environ=OPENCLAW | {"OPENCLAW_ENABLED": "false"})
    assert all_nodes(loaded.settings) == ()


def test_other_variables_of_openclaw_are_its_own(read):
    environ = {"OPENCLAW_STATE_DIR": "/x", "OPENCLAW_GATEWAY_TOKEN": "y", "OPENCLAW_ENABLE": "z"}
    loaded = read(environ=environ)
    assert loaded.settings == Settings()
    assert loaded.warnings == ()


def test_openclaw_needs_a_base_url(problems_of):
    assert problems_of(environ={"OPENCLAW_ENABLED": "1"}) == [
        "OPENCLAW_ENABLED: OpenClaw is reached at openclaw_base_url only, which is not set"
    ]


def test_openclaw_cannot_be_called_as_another_node(problems_of):
    toml = BOX.replace("box", "OpenClaw")
    assert problems_of(toml, OPENCLAW) == ["OPENCLAW_NODE_NAME: a node is called 'OpenClaw' already"]
    without = {name: value for name, value in OPENCLAW.items() if name != "OPENCLAW_NODE_NAME"}
    assert problems_of(toml, without) == ["OPENCLAW_ENABLED: a node is called 'OpenClaw' already"]
