"""A gateway with models of its own: bought like any other, and nothing of them outlives it."""

import json
import os
import signal

import httpx
import openai
import psutil
import pytest

from tests.support.fake_llama_server import installed, model_file
from tests.support.gateway import gateway, run_command


@pytest.fixture
def environment(tmp_path):
    (tmp_path / "bin").mkdir()
    models = {
        "mine": {"path": str(model_file(tmp_path, "mine", load_s=0.2)), "context_length": 2048},
        "vectors": {"path": str(model_file(tmp_path, "vectors")), "type": "embedding"},
    }
    return {
        "LCP_GATEWAY_LLAMA_SERVER": str(installed(tmp_path / "bin")),
        "LCP_GATEWAY_MODELS": json.dumps(models),
        "XDG_STATE_HOME": str(tmp_path),
    }


def test_clients_use_local_models_by_name_and_nothing_outlives_a_killed_gateway(environment):
    with gateway(env=environment) as running:
        client = openai.OpenAI(base_url=running.api_url, api_key="x", max_retries=0)
        assert {"mine", "vectors"} <= {model.id for model in client.models.list()}
        asked = {"model": "mine", "messages": [{"role": "user", "content": "hi"}]}
        raw = client.chat.completions.with_raw_response.create(**asked)
        assert raw.parse().choices[0].message.content == "word word word"
        assert raw.headers["x-lcp-peer-id"] == "node:local"
        chunks = [chunk.choices[0].delta.content for chunk in client.chat.completions.create(**asked, stream=True)]
        assert [text for text in chunks if text] == ["0 ", "1 ", "2 "]
        assert client.embeddings.create(model="vectors", input="hi", encoding_format="float").data[0].embedding == [
            0.5,
            -0.25,
        ]
        # A reload keeps the node, whose address is in no file.
        os.kill(running.pid, signal.SIGHUP)
        running.wait_for_log("reload")
        assert httpx.post(f"{running.api_url}/chat/completions", json=asked, timeout=60).status_code == httpx.codes.OK
        children = psutil.Process(running.pid).children(recursive=True)
        assert any("fake_llama_server" in " ".join(child.cmdline()) for child in children)
        os.kill(running.pid, signal.SIGKILL)
        _, left = psutil.wait_procs(children, timeout=60)
        assert not left


def test_without_llama_server_the_gateway_says_so_in_a_line_and_does_not_start(environment):
    ended = run_command("serve", "--embedded", env={**environment, "LCP_GATEWAY_LLAMA_SERVER": "no-such-llama"})
    assert ended.returncode == 2
    assert "'no-such-llama' was not found" in ended.stderr
    assert "Traceback" not in ended.stderr
