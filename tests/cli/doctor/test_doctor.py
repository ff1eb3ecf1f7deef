"""``doctor`` against a real node, and against other servers."""

import json
import socket

import pytest

ABSENT = "02" + "ab" * 32


@pytest.fixture
def at(node):
    return ("--lcpd-grpc-addr", node.address)


@pytest.fixture
def nowhere():
    """An address where no server listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def test_a_healthy_doctor_says_ok_to_everything(run, at):
    outcome = run("doctor", *at)
    assert outcome.code == 0
    names = [line.split()[:2] for line in outcome.out.splitlines() if not line.startswith("warn")]
    assert names == [
        ["ok", name]
        for name in ("configuration", "console", "journal", "daemon", "version", "peers", "quote", "invoice")
    ]
    assert "terms and invoice hold; network bcrt, and none is set" in outcome.out
    assert "warn                 no limit on spending is set" in outcome.out
    assert "warn                 the daemon pays routing fees of up to 10,000 sat" in outcome.out
    assert "msat) for a very short request; nothing was paid" in outcome.out


def test_the_doctor_cancels_its_quote_and_pays_nothing(run, at, node):
    before = len(node.events.read_text().splitlines()) if node.events.exists() else 0
    run("doctor", *at)
    lines = node.events.read_text().splitlines()[before:]
    assert [json.loads(line)["kind"] for line in lines] == ["quote", "cancel"]


def test_the_doctor_lists_the_problems_of_the_configuration(run, monkeypatch):
    monkeypatch.setenv("LCP_GATEWAY_LOG_LEVEL", "loud")
    outcome = run("doctor", "--http-addr", "x")
    assert outcome.code == 2
    lines = outcome.out.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("fail  configuration") for line in lines)


def test_the_doctor_gives_advice_when_the_daemon_does_not_answer(run, nowhere):
    outcome = run("doctor", "--lcpd-grpc-addr", nowhere, "--preflight-timeout-s", "1")
    assert outcome.code == 1
    assert "fail  daemon" in outcome.out
    assert "is lcpd-grpcd running there" in outcome.out
    assert "peers" not in outcome.out


def test_the_doctor_finds_a_mapped_peer_that_is_missing(run, at):
    outcome = run("doctor", *at, "--model-map", f"gpt-5={ABSENT}")
    assert outcome.code == 1
    assert f"{ABSENT} for gpt-5" in outcome.out
    assert "ok    quote" in outcome.out


def test_the_doctor_finds_a_price_limit_that_lets_nothing_through(run, at):
    outcome = run("doctor", *at, "--max-price-msat", "5")
    assert outcome.code == 1
    assert "over max_price_msat (5)" in outcome.out


def test_the_doctor_finds_an_allowlist_that_lets_nothing_through(run, at):
    outcome = run("doctor", *at, "--model-map", f"only={ABSENT}", "--model-allowlist", "only")
    assert outcome.code == 1
    assert "no model can be asked for" in outcome.out


def test_the_doctor_finds_a_version_that_the_gateway_does_not_speak(run, start, tmp_path):
    address = f"unix:{tmp_path}/v.sock"
    process = start("node", "--listen", address, "--protocol-version", "9")
    assert "node ready" in process.stdout.readline()
    outcome = run("doctor", "--lcpd-grpc-addr", address)
    assert outcome.code == 1
    assert "fail  version" in outcome.out
    assert "version 9" in outcome.out


def test_the_doctor_brings_its_own_node_when_it_is_asked_to(start):
    process = start("doctor", "--embedded")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert out.count("ok  ") == 8
    assert "embedded.db is made at the first start" in out
    assert "warn" not in out


@pytest.mark.parametrize(
    ("flags", "environ", "said"),
    [
        ((), {}, "console        /console/ on 127.0.0.1:8080; no sign-in on this machine"),
        (
            ("--http-addr", ":8080", "--allow-open"),
            {},
            "console        not served: :8080 can be reached by other machines",
        ),
        (("--console", "off"), {}, "console        not served: console is off"),
        ((), {"API_KEYS": "k"}, "sign-in with one of api_keys"),
        (("--auth", "accounts", "--registration", "invite"), {}, "sign-in with a key, registration invite"),
    ],
)
def test_the_doctor_says_whether_the_console_is_served_and_from_where_users_sign_in(
    run, at, monkeypatch, flags, environ, said
):
    for name, value in environ.items():
        monkeypatch.setenv(f"LCP_GATEWAY_{name}", value)
    outcome = run("doctor", *at, *flags)
    assert said in outcome.out
    assert ("keys are taken over https only" in outcome.out) is ("sign-in with" in said)


def test_several_workers_need_a_redis_that_the_doctor_looks_for(run, at, monkeypatch, tmp_path):
    outcome = run("doctor", *at, "--workers", "2", "--redis-url", "redis://127.0.0.1:1/0")
    assert "workers        2, with the Redis of redis_url" in outcome.out
    monkeypatch.setenv("PATH", str(tmp_path))
    outcome = run("doctor", *at, "--workers", "2")
    assert outcome.code == 1
    assert "install one" in outcome.out
