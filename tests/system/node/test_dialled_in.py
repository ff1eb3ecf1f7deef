"""A gateway with a node inside sells to Lightning peers what a node that dialled in computes."""

import json

import pytest

from tests.support.gateway import gateway, run_command
from tests.support.http_node import HttpNodeThread
from tests.support.lnd_network import in_a_thread
from tests.support.node_program import node_program
from tests.support.node_thread import eventually
from tests.support.ports import free_address
from tests.support.wire import get
from tests.system.node.test_local_models import bought

CONFIG = """
[[sell.models]]
name = "m"
input_msat_per_mtok = 2_000_000
output_msat_per_mtok = 14_000_000
[[sell.backends]]
url = "http://{address}/v1"
"""


@pytest.mark.slow
def test_a_sold_job_goes_to_the_node_that_dialled_in_and_is_in_the_books_of_both(tmp_path):
    address = free_address()
    config = tmp_path / "node.toml"
    config.write_text(CONFIG.format(address=address))
    places = {"XDG_CONFIG_HOME": str(tmp_path / "j"), "XDG_STATE_HOME": str(tmp_path / "j")}

    def join(*arguments):
        return run_command("join", *arguments, "--name", "box", env={**places, "LCP_GATEWAY_JOIN_TOKEN": "tok-gpu"})

    with in_a_thread(tmp_path, "buyer", "seller") as network, HttpNodeThread("alpha", ("m",)) as backend:
        buyer, seller = network.by_identity.values()
        settings = {
            "LCP_GATEWAY_HTTP_ADDR": address,
            "LCP_GATEWAY_LND": seller.address.target,
            "LCP_GATEWAY_LND_TLS_CERT": str(seller.address.tls_cert),
            "LCP_GATEWAY_LND_NODE_MACAROON_FILE": str(seller.address.macaroon),
            "LCP_GATEWAY_NODE_CONFIG": str(config),
            "LCP_GATEWAY_DIALIN_NODES": json.dumps([{"name": "gpu", "token": "tok-gpu", "price_per_request_msat": 7}]),
            "LCP_GATEWAY_MODEL_MAP": "m=node:gpu",
            "XDG_STATE_HOME": str(tmp_path / "g"),
        }
        with gateway(embedded=False, env=settings) as running, node_program(buyer, tmp_path / "b") as buys:
            try:
                started = join("start", f"ws://{address}", "--backend", backend.base_url)
                assert started.returncode == 0, started.stderr
                eventually(lambda: get(running.port, "/readyz").json["nodes"]["gpu"]["models"] == 1)
                assert bought(buys.address, seller.identity, "m")
            finally:
                stopped = join("stop")
            assert stopped.returncode == 0
            # Both are written after the answer.
            eventually(lambda: purchases_of(running.port) == [("node:gpu", 7, "delivered")])
            eventually(lambda: sold_by(tmp_path / "g") == [("m", "delivered")])


def purchases_of(port):
    found = get(port, "/api/purchases").json["data"]
    return [(purchase["peer_id"], purchase["price_msat"], purchase["state"]) for purchase in found]


def sold_by(state):
    done = run_command("sell", "jobs", "--json", env={"XDG_STATE_HOME": str(state)})
    return [(line["model"], line["outcome"]) for line in json.loads(done.stdout)]
