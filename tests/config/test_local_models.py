"""The local models of the configuration: a file or a repository, the node that serves them, and what does not go together."""

import json

import pytest

from lcp_gateway.config import LOCAL_NODE, LOCAL_URL, ConfigError, all_nodes, load, local_models, reachable_nodes


@pytest.fixture
def gguf(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"")
    return str(path)


def loaded(**environ):
    named = {f"LCP_GATEWAY_{name.upper()}": value for name, value in environ.items()}
    return load(flags={}, environ=named, config_path=None).settings


def problems(**environ):
    with pytest.raises(ConfigError) as caught:
        loaded(**environ)
    return "\n".join(caught.value.problems)


def models(**of_x):
    return json.dumps({"x": of_x, "y": {"type": "chat"}})


def test_a_model_with_a_file_is_local_and_has_a_node(gguf):
    settings = loaded(models=models(path=gguf, context_length=2048))
    assert list(local_models(settings)) == ["x"]
    (node,) = all_nodes(settings)
    assert (node.name, node.base_url, node.price_per_request_msat) == (LOCAL_NODE, LOCAL_URL, 0)
    assert reachable_nodes(settings) == (), "it has no address until it runs"


def test_the_operator_may_price_the_node(gguf):
    nodes = json.dumps([{"name": "local", "base_url": "local:", "price_per_1k_output_msat": 500}])
    (node,) = all_nodes(loaded(models=models(hf_repo="owner/repo:Q4_K_M"), nodes=nodes))
    assert node.price_per_1k_output_msat == 500


def test_what_does_not_go_together_is_said(gguf):
    assert "has a path and a hf_repo" in problems(models=models(path=gguf, hf_repo="a/b"))
    assert "no such file: /no/file" in problems(models=models(path="/no/file"))
    assert 'must be a repository such as "owner/repo:Q4_K_M"' in problems(models=models(hf_repo="https://x/y/z"))
    local = json.dumps([{"name": "local", "base_url": "local:"}])
    assert "no model of [models] has a path or a hf_repo" in problems(nodes=local)
    other = json.dumps([{"name": "local", "base_url": "http://127.0.0.1:1"}])
    assert "give this one another name" in problems(models=models(path=gguf), nodes=other)
    named = json.dumps([{"name": "gpu", "base_url": "local:"}])
    assert "is the address of the node 'local', not of 'gpu'" in problems(models=models(path=gguf), nodes=named)
    assert "set embedded too" in problems(local_model="true")
