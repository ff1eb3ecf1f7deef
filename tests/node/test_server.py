import signal
import subprocess
import sys
import time

import grpc
import orjson
import pytest

from lcp_gateway._gen.lcpd import lcpd_pb2, lcpd_pb2_grpc
from tests.support.node_client import chat_task, until

PROGRAM = """
import sys
from pathlib import Path
from lcp_gateway.node.config import NodeConfig, WalletConfig
from lcp_gateway.node.server import run_forever
config = NodeConfig(
    listen="127.0.0.1:0", events_path=Path(sys.argv[1]), wallet=WalletConfig(payment_latency_s=30)
)
run_forever(config, exit_with_stdin=sys.argv[2] == "yes")
"""


@pytest.fixture
def start(tmp_path):
    """Start a node as a process; return it and its address."""
    started = []

    def run(*, exit_with_stdin=False, stdin=subprocess.PIPE):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, tmp_path / "events", "yes" if exit_with_stdin else "no"],
            stdin=stdin,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        line = process.stdout.readline()
        assert line.startswith("node ready on ") and "no real money moves" in line
        return process, line.split()[3]

    yield run
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()
        if process.stdin is not None:
            process.stdin.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_cleanly(start, number):
    process, _ = start()
    process.send_signal(number)

    assert process.wait(60) == 0


def test_it_ends_with_its_standard_input(start):
    process, _ = start(exit_with_stdin=True)
    assert process.poll() is None
    process.stdin.close()

    assert process.wait(60) == 0


def test_it_does_not_mind_what_is_written_to_its_input(start):
    process, _ = start(exit_with_stdin=True)
    process.stdin.write("hello\n")
    process.stdin.flush()
    time.sleep(0.2)

    assert process.poll() is None


def test_an_input_that_is_no_pipe_does_not_stop_it(start, tmp_path):
    (tmp_path / "file").write_text("x")
    with (tmp_path / "file").open() as file:
        process, _ = start(exit_with_stdin=True, stdin=file)
        time.sleep(0.2)
        assert process.poll() is None


async def test_what_was_paid_is_on_disk_after_a_kill(start, tmp_path):
    process, address = start()
    async with grpc.aio.insecure_channel(address) as channel:
        stub = lcpd_pb2_grpc.LCPDServiceStub(channel)
        peer = (await stub.ListLCPPeers(lcpd_pb2.ListLCPPeersRequest())).peers[0].peer_id
        quote = await stub.RequestQuote(lcpd_pb2.RequestQuoteRequest(peer_id=peer, task=chat_task()))
        call = stub.AcceptAndExecute(
            lcpd_pb2.AcceptAndExecuteRequest(peer_id=peer, job_id=quote.terms.job_id, pay_invoice=True), timeout=60
        )
        await until(lambda: (tmp_path / "events").read_bytes().count(b"\n") >= 3)
        process.kill()
        process.wait(60)
        with pytest.raises(grpc.aio.AioRpcError):
            await call

    lines = [orjson.loads(line) for line in (tmp_path / "events").read_bytes().splitlines()]
    assert [line["kind"] for line in lines] == ["quote", "accept", "paid"]


def test_the_module_runs_with_a_file_and_complains_about_a_bad_one(tmp_path):
    path = tmp_path / "node.toml"
    path.write_text("sed = 1")
    run = subprocess.run(
        [sys.executable, "-m", "lcp_gateway.node", path], check=False, capture_output=True, text=True, timeout=120
    )

    assert (run.returncode, run.stderr) == (2, "sed: unknown key, nearest is seed\n")


def test_starting_imports_neither_aiohttp_nor_pydantic():
    code = (
        "import sys, lcp_gateway.node.server;"
        "print([name for name in ('aiohttp', 'pydantic', 'prometheus_client') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120)

    assert run.stdout.strip() == "[]"
