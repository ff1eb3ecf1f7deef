"""`lcp-gateway node --lnd` and `serve --lnd` as processes: two of them over stand-in lnds, one buying from the other."""

import json
import socket
from hashlib import sha256
from itertools import product

import grpc
import pytest

from lcp_gateway._gen.lcpd import lcpd_pb2 as pb
from lcp_gateway._gen.lcpd import lcpd_pb2_grpc
from lcp_gateway.node.lnd.permissions import needed
from tests.support.gateway import gateway, run_command
from tests.support.lnd_network import in_a_thread
from tests.support.node_program import SELLER_TOML, lnd_flags, node_program
from tests.support.node_thread import eventually
from tests.support.wire import CHAT, RESPONSES, document, get, post

BODY = json.dumps({"model": "echo-1", "messages": [{"role": "user", "content": "hello node"}]}).encode()


@pytest.fixture
def lnds(tmp_path):
    """Two lnds, a buyer's and a seller's, that are each other's peers."""
    with in_a_thread(tmp_path, "buyer", "seller") as network:
        yield tuple(network.by_identity.values())


def stub(address):
    return lcpd_pb2_grpc.LCPDServiceStub(grpc.insecure_channel(address))


def quote_request(peer_id):
    task = {"openai_chat_completions_v1": {"request_json": BODY, "params": {"model": "echo-1"}}}
    return pb.RequestQuoteRequest(peer_id=peer_id, task=task)


@pytest.mark.slow
def test_a_node_buys_from_another_over_lnd(lnds, tmp_path):
    buyer, seller = lnds
    with node_program(seller, tmp_path / "s", config=SELLER_TOML), node_program(buyer, tmp_path / "b") as program:
        node = stub(program.address)
        eventually(lambda: node.ListLCPPeers(pb.ListLCPPeersRequest()).peers)
        (peer,) = node.ListLCPPeers(pb.ListLCPPeersRequest()).peers
        assert peer.peer_id == seller.identity
        assert node.GetLocalInfo(pb.GetLocalInfoRequest()).node_id == buyer.identity
        terms = node.RequestQuote(quote_request(peer.peer_id), timeout=60).terms
        request = pb.AcceptAndExecuteRequest(peer_id=peer.peer_id, job_id=terms.job_id, pay_invoice=True)
        result = node.AcceptAndExecute(request, timeout=60).result
    assert result.status == pb.Result.STATUS_OK
    assert "hello node" in result.result.decode()
    assert result.payment.fee_msat == buyer.payment_fee_msat
    assert "hello node" not in "".join(program.log)


@pytest.mark.slow
def test_a_node_that_only_sells_needs_no_permission_to_pay(lnds, tmp_path):
    buyer, seller = lnds
    calls = [it.call.split(".")[1] for it in needed(buys=False, sells=True, holds=False)]
    assert "SendPaymentV2" not in calls
    macaroon = str(seller.bake("sells", *calls))
    config = "[buy]\nenabled = false\n" + SELLER_TOML
    with (
        node_program(seller, tmp_path / "s", "--macaroon", macaroon, config=config) as sells,
        node_program(buyer, tmp_path / "b") as program,
    ):
        node = stub(program.address)
        eventually(lambda: node.ListLCPPeers(pb.ListLCPPeersRequest()).peers)
        terms = node.RequestQuote(quote_request(seller.identity), timeout=60).terms
        request = pb.AcceptAndExecuteRequest(peer_id=seller.identity, job_id=terms.job_id, pay_invoice=True)
        assert node.AcceptAndExecute(request, timeout=60).result.status == pb.Result.STATUS_OK
        with pytest.raises(grpc.RpcError, match="this node does not buy"):
            stub(sells.address).RequestQuote(quote_request(buyer.identity), timeout=60)


def test_a_node_that_is_told_to_stop_ends_well(lnds, tmp_path):
    with node_program(lnds[0], tmp_path / "b") as program:
        pass
    assert program.end() == 0
    events = [json.loads(line)["event"] for line in program.log if line.startswith("{")]
    assert events[0] == "node started" and events[-1] == "stopped"


def test_systemd_is_notified_from_start_to_stop(lnds, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        variables = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "200000"}
        with node_program(lnds[0], tmp_path / "b", **variables) as program:
            assert "READY=1" in manager.recv(4096).decode().splitlines()
            assert [manager.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            # Its messages are read as they come: few of them wait, and further ones would be lost.
            program.process.terminate()
            assert set(iter(lambda: manager.recv(4096), b"STOPPING=1")) <= {b"WATCHDOG=1"}
        assert program.end() == 0


@pytest.mark.slow
def test_a_gateway_buys_through_a_node_of_its_own_process(lnds, tmp_path):
    buyer, seller = lnds
    settings = {
        "LCP_GATEWAY_LND": buyer.address.target,
        "LCP_GATEWAY_LND_TLS_CERT": str(buyer.address.tls_cert),
        "LCP_GATEWAY_LND_NODE_MACAROON_FILE": str(buyer.address.macaroon),
    }
    with node_program(seller, tmp_path / "s", config=SELLER_TOML), gateway(embedded=False, env=settings) as served:
        eventually(lambda: get(served.port, "/v1/models").json["data"])
        daemon = get(served.port, "/readyz").json["daemon"]
        assert daemon["reachable"] and daemon["transport"] == "in-process"
        for path, stream in product((CHAT, RESPONSES), (False, True)):
            answer = post(served.port, path, document(path, "echo-1", "hello gateway", stream=stream))
            assert answer.status == 200 and answer.whole and answer.verdict == "settled"
            place = f"/v1/receipts/{answer.headers['x-lcp-job-id']}"
            eventually(lambda place=place: get(served.port, place).json["state"] == "delivered")
            receipt = get(served.port, place).json
            assert sha256(bytes.fromhex(receipt["preimage"])).hexdigest() == receipt["payment_hash"]
            assert receipt["fee_msat"] == buyer.payment_fee_msat
        eventually(lambda: "lcpgateway_lcp_lnd_up 1.0" in get(served.port, "/metrics").body.decode())
        assert "hello gateway" not in served.logs
        assert served.stop() == 0


def test_settings_that_cannot_be_are_refused(lnds, tmp_path):
    missing = run_command("node", "--lnd", "127.0.0.1:1", "--tls-cert", str(tmp_path / "none"))
    assert missing.returncode == 2 and "none" in missing.stderr
    simulated = run_command("node", "--lnd", "127.0.0.1:1", "--faults")
    assert simulated.returncode == 2 and "--faults" in simulated.stderr
    config = tmp_path / "node.toml"
    config.write_text('[grpc]\nlisten = "0.0.0.0:0"\n')
    beyond = run_command("node", *lnd_flags(lnds[0]), "--config", str(config))
    assert beyond.returncode == 2 and "can be reached from other machines" in beyond.stderr


def test_an_lnd_that_does_not_answer_ends_the_start(lnds, tmp_path):
    config = tmp_path / "node.toml"
    config.write_text("startup_timeout_s = 0.5\n")
    flags = ("--lnd", "127.0.0.1:1", *lnd_flags(lnds[0])[2:], "--config", str(config))
    ended = run_command("node", *flags)
    assert ended.returncode == 1 and "did not answer within 0.5 s" in ended.stderr
