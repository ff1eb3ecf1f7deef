import pytest

from lcp_gateway.node.lcp.judging import SoldModel
from lcp_gateway.node.lcp.pricing import Surge, TokenPrice
from lcp_gateway.node.runtime.bounds import Bounds, Delays, PaymentLimits
from lcp_gateway.node.settings.model import BackendSettings, NodeSettings
from lcp_gateway.node.toml import ConfigError, read_dataclass
from tests.support.cases import each_case

LND = {"grpc_addr": "127.0.0.1:10009"}
ECHO = {"name": "echo", "kind": "echo"}
MODEL = {"name": "m", "input_msat_per_mtok": 3, "output_msat_per_mtok": 4}
PEER = "02" + "ab" * 32


def read(**document):
    return read_dataclass(NodeSettings, {"lnd": LND, **document})


def sell(**document):
    return read(sell={"models": [MODEL], "backends": [ECHO], **document}).sell


def test_nothing_set_is_a_node_that_only_buys():
    settings = read_dataclass(NodeSettings, {})

    assert settings == NodeSettings()
    assert not settings.sell.active
    assert settings.sell.sold == {}


def test_models_are_sold_at_their_price_with_their_own_limit_or_that_of_all():
    small = {**MODEL, "name": "small", "max_output_tokens": 7}

    sold = sell(models=[MODEL, small], max_output_tokens=9).sold

    assert sold == {"m": SoldModel(TokenPrice(3, 4), 9), "small": SoldModel(TokenPrice(3, 4), 7)}


def test_a_node_that_is_told_not_to_sell_sells_no_model():
    settings = sell(enabled=False)

    assert not settings.active
    assert settings.sold == {}


def test_nothing_set_gives_the_bounds_and_delays_of_the_runtime():
    settings = NodeSettings()

    assert settings.sell.bounds == Bounds()
    assert settings.delays == Delays()
    assert settings.buy.payment_limits == PaymentLimits()


def test_purchases_have_the_limits_of_the_table():
    settings = read(buy={"max_price_msat": 7, "fee_limit_msat": 3, "idle_timeout_s": 2, "payment_timeout_s": 9})

    assert settings.buy.payment_limits == PaymentLimits(max_price_msat=7, max_fee_msat=3)
    assert settings.delays.timeouts.idle_s == 2
    assert settings.delays.payment_timeout_s == 9


@pytest.mark.parametrize("address", ["h:9735", "10.0.0.1:9735", "[::1]:9735", "abc.onion", "abc.onion:9735"])
def test_peers_that_lnd_is_kept_connected_with_have_an_id_and_an_address(address):
    assert read(peers=[f"{PEER}@{address}"]).peer_addresses == {PEER: address}


@pytest.mark.parametrize(
    "peer", ["", PEER, f"{PEER}@", f"{PEER}@h:", f"{PEER}@h:port", f"{PEER}@::1:9735", f"{PEER}@ h", f"x{PEER[1:]}@h"]
)
def test_a_peer_without_either_is_an_error(peer):
    with pytest.raises(ConfigError, match=r"peers\[1\]: must be a node's id and its address, ID@HOST:PORT"):
        read(peers=[f"03{PEER[2:]}@h", peer])


def test_a_peer_has_one_address():
    with pytest.raises(ConfigError, match="peers: a node's id is there twice"):
        read(peers=[f"{PEER}@h", f"{PEER}@g"])


def test_how_often_manifests_are_sent_again_is_a_delay_of_the_node():
    assert read(manifest_resend_s=10).delays == Delays(manifest_resend_s=10)


def test_terms_and_surcharge_are_those_of_the_table():
    terms = sell(ttl_s=60, invoice_slack_s=2, surge={"threshold": 1, "per_job_bps": 500}, hold_invoices=True).terms

    assert terms.hold
    assert terms.invoice_expiry_s == 58
    assert terms.surge == Surge(threshold=1, per_job_bps=500)


def test_a_model_runs_at_its_backend_or_at_the_first():
    other = {"name": "other", "url": "http://127.0.0.1:1/v1"}
    settings = sell(models=[MODEL, {**MODEL, "name": "n", "backend": "other"}], backends=[ECHO, other])

    assert [settings.backend_of(model).name for model in settings.models] == ["echo", "other"]


def test_the_api_key_of_a_backend_is_in_no_text_of_the_settings():
    assert "secret" not in repr(BackendSettings(url="http://127.0.0.1/v1", api_key="secret"))


@each_case(
    "document, complaint",
    [
        ({"models": [MODEL, MODEL]}, 'sell: models: "m" is there twice'),
        ({"backends": []}, "sell: backends: missing"),
        ({"models": [{**MODEL, "backend": "x"}]}, r'sell: models\[0\].backend: no backend is named "x"'),
        ({"models": [{**MODEL, "name": " m"}]}, r"sell.models\[0\]: name: must not be empty, nor begin"),
        ({"models": [{**MODEL, "input_msat_per_mtok": 0}]}, r'sell.models\[0\]: model "m": input_msat_per_mtok'),
        ({"models": [{"name": "m"}]}, r"sell.models\[0\].input_msat_per_mtok: missing"),
        ({"models": [{**MODEL, "max_output_tokens": 2**32}]}, r"sell.models\[0\]: max_output_tokens: must be at most"),
        ({"allow": [PEER.upper()]}, r"sell: allow\[0\]: must be a node's id"),
        ({"ttl_s": 0}, "sell: ttl_s: must be at least 1"),
        ({"surge": {"per_job_bps": 1, "max_multiplier_bps": 9_999}}, "sell.surge: max_multiplier_bps is 9999"),
        ({"backends": [{"url": "ftp://host"}]}, r"sell.backends\[0\]: url: must be an http"),
        ({"backends": [{"kind": "magic"}]}, r"sell.backends\[0\].kind: must be one of 'echo', 'openai'"),
        ({"backends": [{"kind": "local"}]}, r"sell.backends\[0\]: path, hf_repo: one of them"),
        (
            {"backends": [{"kind": "local", "path": "a", "hf_repo": "b"}]},
            r"sell.backends\[0\]: path, hf_repo: one of them",
        ),
        ({"backends": [{**ECHO, "path": "a"}]}, r"sell.backends\[0\]: path, hf_repo: one of them"),
        ({"local": {"loaded_max": 0}}, "sell.local: loaded_max: must be at least 1"),
        (
            {"models": [MODEL, {**MODEL, "name": "n"}], "backends": [{"kind": "local", "path": "a"}]},
            'sell: backends: "default" is of kind "local" and runs one model, not "m" and "n"',
        ),
    ],
)
def test_what_cannot_be_sold_stops_the_start_and_names_the_key(document, complaint):
    with pytest.raises(ConfigError, match=f"^{complaint}"):
        sell(**document)


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ({"grpc": {"listen": "50051"}}, 'grpc: listen: must be "host:port"'),
        ({"grpc": {"tls_cert": "a"}}, "grpc: tls_cert and tls_key come together"),
        ({"limits": {"max_payload_bytes": 70_000}}, "limits: max_payload_bytes is 70000: at most 65533"),
        ({"store": {"at_rest": "plain"}}, "store.at_rest: must be one of 'encrypted', 'memory'"),
        ({"buy": {"fee_limit_msat": 2**63}}, "buy.fee_limit_msat: must be a number below"),
        ({"buy": {"idle_timeout_s": float("nan")}}, "buy.idle_timeout_s: must be a number below"),
        ({"bye": {}}, "bye: unknown key, nearest is buy"),
    ],
)
def test_a_wrong_setting_names_its_key(document, complaint):
    with pytest.raises(ConfigError, match=f"^{complaint}"):
        read(**document)
