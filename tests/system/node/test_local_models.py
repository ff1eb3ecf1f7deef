"""A node, alone or in a gateway, that sells models which it runs itself."""

import json

import grpc
import psutil
import pytest

from lcp_gateway._gen.lcpd import lcpd_pb2 as pb
from lcp_gateway._gen.lcpd import lcpd_pb2_grpc
from tests.support.fake_llama_server import installed, model_file
from tests.support.gateway import gateway, run_command
from tests.support.lnd_network import in_a_thread
from tests.support.node_program import lnd_flags, node_program
from tests.support.node_thread import eventually

MODELS = {"chat-a": {"load_s": 0.2}, "chat-b": {"tokens": 2}}


@pytest.fixture
def lnds(tmp_path):
    with in_a_thread(tmp_path, "buyer", "seller") as network:
        yield tuple(network.by_identity.values())


@pytest.fixture
def config(tmp_path):
    """The settings of a seller of two local models, of which one is loaded at a time."""
    (tmp_path / "bin").mkdir()
    lines = [f'[sell.local]\nllama_server = "{installed(tmp_path / "bin")}"\n']
    for name, behaviour in MODELS.items():
        path = model_file(tmp_path, name, **behaviour)
        lines.append(f'[[sell.backends]]\nname = "{name}"\nkind = "local"\npath = "{path}"\ncontext_length = 2048\n')
        lines.append(f'[[sell.models]]\nname = "{name}"\nbackend = "{name}"\n')
        lines.append("input_msat_per_mtok = 2_000_000\noutput_msat_per_mtok = 14_000_000\n")
    return "".join(lines)


def bought(address, peer_id, model):
    """Buy an answer; return its text."""
    with grpc.insecure_channel(address) as channel:
        node = lcpd_pb2_grpc.LCPDServiceStub(channel)

        def is_ready():
            return [it.peer_id for it in node.ListLCPPeers(pb.ListLCPPeersRequest()).peers] == [peer_id]

        eventually(is_ready)
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}]}).encode()
        task = {"openai_chat_completions_v1": {"request_json": body, "params": {"model": model}}}
        terms = node.RequestQuote(pb.RequestQuoteRequest(peer_id=peer_id, task=task), timeout=60).terms
        request = pb.AcceptAndExecuteRequest(peer_id=peer_id, job_id=terms.job_id, pay_invoice=True)
        result = node.AcceptAndExecute(request, timeout=60).result
        assert result.status == pb.Result.STATUS_OK, result.message
        return json.loads(result.result)["choices"][0]["message"]["content"]


@pytest.mark.slow
def test_a_node_sells_models_that_it_runs_itself(lnds, config, tmp_path):
    buyer, seller = lnds
    with node_program(seller, tmp_path / "s", config=config) as sells, node_program(buyer, tmp_path / "b") as buys:
        assert bought(buys.address, seller.identity, "chat-a") == "word word word"
        assert bought(buys.address, seller.identity, "chat-b") == "word word"
        children = psutil.Process(sells.process.pid).children(recursive=True)
        assert any("fake_llama_server" in " ".join(child.cmdline()) for child in children)
        sells.process.kill()
        _, left = psutil.wait_procs(children, timeout=60)
        assert not left


@pytest.mark.slow
def test_a_gateway_with_a_node_inside_sells_them_too(lnds, config, tmp_path):
    buyer, seller = lnds
    file = tmp_path / "node.toml"
    file.write_text(config)
    settings = {
        "LCP_GATEWAY_LND": seller.address.target,
        "LCP_GATEWAY_LND_TLS_CERT": str(seller.address.tls_cert),
        "LCP_GATEWAY_LND_NODE_MACAROON_FILE": str(seller.address.macaroon),
        "LCP_GATEWAY_NODE_CONFIG": str(file),
        "XDG_STATE_HOME": str(tmp_path / "g"),
    }
    with gateway(embedded=False, env=settings) as running, node_program(buyer, tmp_path / "b") as buys:
        assert bought(buys.address, seller.identity, "chat-b") == "word word"
        children = psutil.Process(running.pid).children(recursive=True)
        assert running.stop() == 0
        _, left = psutil.wait_procs(children, timeout=60)
        assert not left


def test_without_llama_server_the_node_says_so_in_a_line_and_does_not_start(lnds, config, tmp_path):
    file = tmp_path / "node.toml"
    file.write_text(config.replace('llama_server = "', 'llama_server = "no-such'))
    ended = run_command("node", *lnd_flags(lnds[1]), "--config", str(file))
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert "was not found. Local models need llama.cpp's llama-server" in line
