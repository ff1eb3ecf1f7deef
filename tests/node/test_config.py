import socket

import pytest

from lcp_gateway.node.config import ModelConfig, NodeConfig, PeerConfig
from lcp_gateway.node.server import Node
from lcp_gateway.node.toml import ConfigError

FULL = """
listen = "127.0.0.1:0"
seed = "mine"
faults = true
quote_ttl_s = 60
events_path = "events.jsonl"

[wallet]
balance_msat = 5

[[peers]]
alias = "Dora"
max_inflight_jobs = 3

[[peers.models]]
name = "m"
base_msat = 1
tokens_per_second = 2
"""


def write(tmp_path, text):
    path = tmp_path / "node.toml"
    path.write_text(text)
    return path


def test_a_file_sets_what_it_names_and_leaves_the_rest(tmp_path):
    config = NodeConfig.from_toml(write(tmp_path, FULL))

    assert (config.seed, config.faults, config.quote_ttl_s) == ("mine", True, 60.0)
    assert config.wallet.balance_msat == 5
    assert config.wallet.fee_ppm == 100
    assert config.events_path.name == "events.jsonl"
    assert config.peers == (PeerConfig("Dora", (ModelConfig("m", 1, tokens_per_second=2.0),), max_inflight_jobs=3),)


def test_an_empty_file_is_the_default(tmp_path):
    assert NodeConfig.from_toml(write(tmp_path, "")) == NodeConfig()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("sed = 'x'", "sed: unknown key, nearest is seed"),
        ("wallet = 3", "wallet: must be a table"),
        ("[wallet]\nbalance = 3", "wallet.balance: unknown key, nearest is balance_msat"),
        ("[wallet]\nbalance_msat = -1", "wallet.balance_msat: must not be negative"),
        ("faults = 1", "faults: must be of type bool, not int"),
        ("protocol_version = true", "protocol_version: must be of type int, not bool"),
        ("quote_ttl_s = 'x'", "quote_ttl_s: must be of type float, not str"),
        ("events_path = 3", "events_path: must be of type str, not int"),
        ("peers = 3", "peers: must be a list"),
        ("[[peers]]\nalias = 'a'", r"peers\[0\].models: missing"),
        ("[[peers]]\nalias='a'\n[[peers.models]]\nnam='x'", r"peers\[0\].models\[0\].nam: unknown"),
        ("[[peers]]\nalias='a'\nmodels=[]\n[[peers]]\nalias='a'\nmodels=[]", "peers: two peers have the same alias"),
        ("[[peers]]\nalias='a'\nmodels=[{name='m'},{name='m'}]", r"peers\[0\].models: two models"),
        ("backend = 'ftp://x'", "backend: must be"),
        ("listen = 'x'", "listen: must be"),
        ("seed = ", "node.toml: "),
    ],
)
def test_an_error_names_the_key(tmp_path, text, complaint):
    with pytest.raises(ConfigError, match=complaint):
        NodeConfig.from_toml(write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"missing.toml: No such file"):
        NodeConfig.from_toml(tmp_path / "missing.toml")


def test_the_backends_key_is_not_shown():
    assert "s3cret" not in repr(NodeConfig(backend_api_key="s3cret"))


async def test_a_port_in_use_is_a_clear_error():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        node = Node(NodeConfig(listen=address))
        with pytest.raises(ConfigError, match=f"listen: cannot listen on {address}"):
            await node.start()
        await node.stop()


async def test_mallorys_name_is_taken_when_faults_are_on():
    node = Node(NodeConfig(listen="127.0.0.1:0", faults=True, peers=(PeerConfig("Mallory", (ModelConfig("m"),)),)))
    with pytest.raises(ConfigError, match="Mallory"):
        await node.start()
    await node.stop()


def test_a_node_that_has_not_started_knows_no_peers():
    with pytest.raises(RuntimeError, match="not started"):
        _ = Node(NodeConfig()).peers
