"""Reloads of a running gateway: each kind of setting takes effect, and no running request breaks."""

import asyncio
import json
import os
import pathlib
import pty
import signal
import subprocess
import sys
import time
from contextlib import suppress

import aiohttp
import psutil
import pytest

from tests.support.gated_node import gated_node
from tests.support.gateway import clean_environment
from tests.support.http_node import Behaviour, HttpNodeThread, http_nodes
from tests.support.journaled import on_node
from tests.support.node_thread import eventually
from tests.support.reloading import NOT_RELOADED, RELOADED, reloadable, write
from tests.support.wire import CHAT, RESPONSES, document, get, post, request_bytes, wire

STREAMS = 200
HANG_UPS = 20


@pytest.fixture(scope="module")
def changing(tmp_path_factory):
    """A gateway whose configuration file each test rewrites."""
    with reloadable(tmp_path_factory.mktemp("reload")) as it:
        yield it


@pytest.fixture
def now(changing):
    """Return the gateway, reloaded without any settings."""
    changing.take("")
    yield changing
    changing.take("")


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def code_of(answer):
    return None if answer.status == 200 else (answer.status, answer.error["code"])


def ask(it, path=CHAT, headers=None, **fields):
    return post(it.port, path, document(path, **fields), headers)


# -- each kind takes effect -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("max_price_msat = 1", (402, "price_limit_exceeded")),
        ("max_total_msat = 1", (402, "price_limit_exceeded")),
        ('model_max_total_msat = "echo-1=1"', (402, "price_limit_exceeded")),
        ('[models."echo-1"]\nmax_price_msat = 1', (402, "price_limit_exceeded")),
        ("budget_hour_msat = 1", (402, "budget_exceeded")),
        ("budget_day_msat = 1", (402, "budget_exceeded")),
        ("fee_base_msat = 900000000\nmax_total_msat = 1000000", (402, "price_limit_exceeded")),
        ("exposure_base_msat = 1\nexposure_share_ppm = 0", (503, "peer_not_trusted")),
        ('model_allowlist = ["echo-7"]', (404, "model_not_available")),
        ("max_requests_per_minute = 1\nmax_tokens_per_minute = 1", (429, "rate_limit_exceeded")),
        ("max_body_bytes = 20", (413, "request_too_large")),
        ("max_header_bytes = 40", (431, "headers_too_large")),
    ],
)
def test_a_limit_holds_once_it_is_set_and_no_longer_than_that(now, text, refused):
    assert ask(now).status == 200
    now.take(text)
    assert code_of(ask(now)) == refused
    now.take("")
    assert ask(now).status == 200


def test_keys_are_added_replaced_and_removed(now):
    assert ask(now).status == 200
    now.take('api_keys = ["sk-one", "sk-two"]')
    assert code_of(ask(now)) == (401, "invalid_api_key")
    assert ask(now, headers=bearer("sk-one")).status == 200
    now.take('api_keys = ["sk-two", "sk-three"]')
    statuses = [ask(now, headers=bearer(f"sk-{n}")).status for n in ("one", "two", "three")]
    assert statuses == [401, 200, 200]
    now.take("")
    assert ask(now).status == 200
    assert not any(key in now.running.logs for key in ("sk-one", "sk-two", "sk-three"))


def test_models_get_other_names_and_requests_a_model(now):
    assert ask(now, model="mine").status == 404
    assert post(now.port, CHAT, {"messages": [{"role": "user", "content": "x"}]}).status == 400
    now.take('default_model = "mine"\n[models."echo-1"]\naliases = ["mine"]')
    assert ask(now, model="mine").status == 200
    assert post(now.port, CHAT, {"messages": [{"role": "user", "content": "x"}]}).status == 200
    assert get(now.port, "/v1/models/mine").json["lcp"]["alias_of"] == "echo-1"


def test_a_host_name_is_accepted_once_it_is_allowed(now):
    by_name = {"Host": "box.lan:8080"}
    assert get(now.port, "/v1/models", by_name).status == 421
    now.take('allowed_hosts = ["box.lan"]')
    assert get(now.port, "/v1/models", by_name).status == 200
    now.take("")
    assert get(now.port, "/v1/models", by_name).status == 421


def test_pages_of_other_origins_may_call(now):
    origin = {"Origin": "https://chat.example.com"}
    allowed = "access-control-allow-origin"
    assert get(now.port, "/v1/models", origin).status == 403
    now.take('cors_origins = ["https://chat.example.com"]')
    assert get(now.port, "/v1/models", origin).headers[allowed] == origin["Origin"]


def test_the_log_level_is_raised_and_lowered(now):
    def logged():
        """Return the levels of the lines about two requests, which the line of the next reload follows."""
        begins_at = len(now.running.json_logs())
        get(now.port, "/healthz")
        ask(now)
        now.read("max_price_msat = -1")
        lines = now.running.json_logs()[begins_at:]
        ends_at = next(at for at, line in enumerate(lines) if line["event"] == NOT_RELOADED)
        return {line["level"] for line in lines[:ends_at]} & {"debug", "info"}

    assert logged() == {"info"}
    now.take('log_level = "debug"')
    assert logged() == {"debug", "info"}
    now.take('log_level = "error"')
    assert logged() == set()
    now.take("verbose = true")
    assert "debug" in logged()


def test_stored_responses_are_dropped_when_storing_is_turned_off(now):
    stored = ask(now, RESPONSES).json["id"]
    assert get(now.port, f"{RESPONSES}/{stored}").status == 200
    now.take("max_price_msat = 0\nmax_stored_items = 5")
    assert get(now.port, f"{RESPONSES}/{stored}").status == 200, "what fits stays"
    now.take("max_stored_items = 0")
    assert get(now.port, f"{RESPONSES}/{stored}").status == 404
    assert code_of(ask(now, RESPONSES, previous_response_id=stored))[0] == 404


def test_a_client_gets_another_time_for_its_body(now):
    now.take('request_read_timeout_s = "300ms"')
    with wire(now.port) as slow:
        slow.send(request_bytes("POST", CHAT, b"{}", {"Content-Length": "100"}))
        assert slow.answer().status == 408


@pytest.mark.parametrize("setting", ["timeout_execute_s", "timeout_s"])
def test_a_purchase_gets_another_time_and_one_that_runs_keeps_its_own(tmp_path, setting):
    words = "one two three four five six seven eight nine ten"
    with reloadable(tmp_path, args=["--node-tokens-per-second", "10"]) as it, wire(it.port) as early:
        early.send(stream_request(words))
        early.read_until(b"data: ")
        it.take(f'{setting} = "300ms"')
        assert ask(it, text=words).status >= 500
        early.read_until(b"[DONE]")


def test_jobs_at_one_time_are_limited_and_those_that_run_are_not_ended(tmp_path):
    with (
        gated_node(tmp_path) as (node, gate),
        reloadable(tmp_path, env=on_node(node), embedded=False) as it,
        wire(it.port) as long,
    ):
        long.send(stream_request("one two three"))
        long.read_until(b"data: ")
        it.take("max_concurrent_requests = 1")
        assert code_of(ask(it)) == (429, "rate_limit_exceeded")
        gate.touch()
        long.read_until(b"[DONE]")
        # Its place is free a moment after its last byte.
        eventually(lambda: ask(it).status == 200)


def test_the_tariff_and_the_administrators_key_change_for_the_next_request(tmp_path):
    base = 'auth = "accounts"\n'
    with reloadable(tmp_path, base + 'admin_key = "boss-1"\napi_keys = ["sk-own"]') as it:

        def office(key, path, fields):
            return post(it.port, f"/api/admin/{path}", fields, bearer(key))

        account = office("boss-1", "accounts", {"name": "a"}).json["id"]
        office("boss-1", f"accounts/{account}/adjustments", {"amount_msat": 10**9, "reason": "x"})
        key = office("boss-1", f"accounts/{account}/keys", {"name": "k"}).json["key"]
        before = ask(it, headers=bearer(key)).headers
        line = it.take(base + 'admin_key = "boss-2"\nmarkup_msat = 77')
        assert line["changed"] == ["admin_key", "api_keys", "markup_msat"]
        after = ask(it, headers=bearer(key)).headers
        assert int(after["x-lcp-charged-msat"]) == int(before["x-lcp-charged-msat"]) + 77
        assert office("boss-1", "accounts", {"name": "b"}).status == 401
        assert office("boss-2", "accounts", {"name": "b"}).status in {200, 201}
        assert ask(it, headers=bearer("sk-own")).status == 401


# -- what does not change -------------------------------------------------------------------------


def test_an_invalid_file_changes_nothing_and_each_problem_is_logged(now):
    now.take("max_price_msat = 1")
    line = now.read("max_price_msat = 'much'\nno_such_setting = 1\n[[nodes]]\nname = 'a'\n")
    assert line["event"] == NOT_RELOADED and len(line["problems"]) == 3
    assert code_of(ask(now)) == (402, "price_limit_exceeded"), "the limit of before holds"
    assert "not valid TOML" in now.read("max_price_msat = ")["problems"][0]
    assert now.take("max_price_msat = 0")["changed"] == ["max_price_msat"]


def test_settings_that_need_a_restart_are_logged_and_unchanged(now):
    text = 'metrics_addr = "127.0.0.1:1"\njournal_url = "off"\nlcpd_grpc_addr = "127.0.0.1:1"\n'
    line = now.take(text + "max_price_msat = 1")
    assert line["changed"] == ["max_price_msat"]
    # The daemon's address has no effect with an embedded node.
    assert line["needs_restart"] == ["journal_url", "metrics_addr"]
    assert get(now.port, "/metrics").status == 200
    assert now.take("")["needs_restart"] == []


def test_a_missing_file_is_logged(tmp_path):
    with reloadable(tmp_path, "max_price_msat = 1") as it:
        it.file.unlink()
        it.hang_up()
        it.running.wait_for_log(NOT_RELOADED)
        assert "gateway.toml" in it.outcomes()[-1]["problems"][0]
        assert code_of(ask(it)) == (402, "price_limit_exceeded")


# -- nodes ----------------------------------------------------------------------------------------


def node_table(server, **fields):
    lines = [f'{name} = "{value}"' for name, value in fields.items()]
    return "\n".join(["[[nodes]]", f'name = "{server.server.name}"', f'base_url = "{server.base_url}"', *lines, ""])


def stream_request(text, model="echo-1"):
    body = json.dumps(document(CHAT, model=model, text=text, stream=True)).encode()
    return request_bytes("POST", CHAT, body)


def is_up(it, name):
    return get(it.port, "/readyz").json["nodes"][name]["up"]


def test_nodes_come_change_and_go_and_their_streams_end_as_they_would_have(tmp_path):
    slow = HttpNodeThread("alpha", ("a-model",), behaviour=Behaviour(token_delay_s=0.15))
    quick = HttpNodeThread("beta", ("b-model",))
    with http_nodes(slow, quick), reloadable(tmp_path) as it:
        assert ask(it, model="a-model").status == 404
        it.take(node_table(slow))
        eventually(lambda: is_up(it, "alpha"))
        with wire(it.port) as stream:
            stream.send(stream_request("one two three four five six", "a-model"))
            stream.read_until(b"data: ")
            it.take(node_table(quick))
            eventually(lambda: is_up(it, "beta"))
            assert ask(it, model="a-model").status == 404, "nothing new goes to it"
            assert ask(it, model="b-model").status == 200
            stream.read_until(b"[DONE]")
        metrics = get(it.port, "/metrics").body.decode()
        assert 'lcpgateway_node_up{node="beta"} 1.0' in metrics
        assert 'lcpgateway_node_up{node="alpha"}' not in metrics
        # Another price, and another key, hold for the next request.
        it.take(node_table(quick, api_key="sk-node").replace("[[nodes]]", "[[nodes]]\nprice_per_request_msat = 5"))
        eventually(lambda: is_up(it, "beta"))
        answer = ask(it, model="b-model")
        assert answer.headers["x-lcp-price-msat"] == "5"
        assert quick.calls()[-1].headers["Authorization"] == "Bearer sk-node"
        assert "sk-node" not in it.running.logs


# -- nothing breaks -------------------------------------------------------------------------------


async def stream_whole(session, url, number):
    """Read a stream; return whether it was complete, and its number of pieces."""
    fields = document(CHAT, text=" ".join(["word"] * 30), stream=True, user=f"u{number}")
    async with session.post(url, json=fields) as response:
        assert response.status == 200, await response.text()
        body = await response.read()
    return body.rstrip().endswith(b"data: [DONE]"), body.count(b"data: ")


@pytest.mark.slow
def test_of_200_streams_none_breaks_while_the_settings_change_20_times(tmp_path):
    """Each reload changes something else: limits, models, keys, nodes, weights, times, and back."""
    quiet = HttpNodeThread("alpha", ("a-model",))
    with (
        http_nodes(quiet),
        gated_node(tmp_path) as (node, gate),
        reloadable(tmp_path, env=on_node(node), embedded=False) as it,
    ):
        files = [
            "max_price_msat = 900000000\nbudget_day_msat = 900000000000\nexposure_base_msat = 0",
            "exposure_base_msat = 0\n" + node_table(quiet),
            'exposure_base_msat = 0\nheartbeat_s = 5\n[models."echo-1"]\naliases = ["x"]',
            "exposure_base_msat = 0\nmax_concurrent_requests = 300\ntimeout_quote_s = 4\njoin_grace_s = 3",
            'exposure_base_msat = 0\napi_keys = ["sk-someone-else"]\nlog_level = "warn"',
        ]
        it.take(files[0])

        async def run():
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(connector=connector) as session:
                url = f"{it.running.api_url}/chat/completions"
                streams = [asyncio.create_task(stream_whole(session, url, number)) for number in range(STREAMS)]
                await accepted(node, STREAMS, streams)
                for number in range(HANG_UPS):
                    write(it.file, files[number % len(files)])
                    before = len(it.outcomes())
                    it.hang_up()
                    while len(it.outcomes()) == before:
                        await asyncio.sleep(0.02)
                    assert not any(stream.done() for stream in streams)
                gate.touch()
                return await asyncio.gather(*streams)

        results = asyncio.run(run())
        assert len(results) == STREAMS
        assert all(whole for whole, _ in results)
        assert len({pieces for _, pieces in results}) == 1, "all said the same"
        it.take(files[0])
        assert len(it.outcomes()) == HANG_UPS + 2
        assert all(line["event"] == RELOADED for line in it.outcomes())
        assert ask(it).status == 200


async def accepted(node, count, streams):
    """Wait until that many streams are paid for: one that is only in flight may still be refused by the next settings."""
    async with asyncio.timeout(120):
        while len(node.events("accept")) < count:
            for stream in streams:
                if stream.done():
                    stream.result()
            await asyncio.sleep(0.05)


def test_a_connection_that_is_kept_open_meets_the_new_settings(now):
    with wire(now.port) as kept:
        kept.send(request_bytes("GET", "/v1/models"))
        assert kept.answer().status == 200
        now.take('api_keys = ["sk-new-key"]')
        kept.send(request_bytes("GET", "/v1/models"))
        assert kept.answer().status == 401


def test_a_hundred_reloads_leave_nothing_behind(now):
    process = psutil.Process(now.running.pid)
    for number in range(20):
        now.take(f"max_price_msat = {number + 10**9}")
    before, files = process.memory_info().rss, process.num_fds()
    for number in range(100):
        now.take(f"max_price_msat = {number + 10**9}")
    assert process.memory_info().rss - before < 24 * 2**20
    assert process.num_fds() <= files + 2


# -- signals at any time --------------------------------------------------------------------------


def test_signals_at_once_are_answered_one_after_the_other(now):
    before = len(now.outcomes())
    for _ in range(5):
        now.hang_up()
    eventually(lambda: len(now.outcomes()) > before)
    now.take("max_price_msat = 0")
    assert len(now.outcomes()) - before <= 6
    assert ask(now).status == 200


def test_a_signal_during_the_start_does_no_harm(tmp_path):
    environment = clean_environment({"LCP_GATEWAY_HTTP_ADDR": "127.0.0.1:0", "XDG_STATE_HOME": str(tmp_path)})
    process = subprocess.Popen(
        [sys.executable, "-m", "lcp_gateway", "serve", "--embedded"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    try:
        # The interpreter must run before it can ignore a signal.
        wait_until_ignored(process.pid)
        os.set_blocking(process.stdout.fileno(), False)
        said = b""
        while b"listening on" not in said:
            assert process.poll() is None, process.stderr.read()
            os.kill(process.pid, signal.SIGHUP)
            time.sleep(0.02)
            said += process.stdout.read() or b""
        process.send_signal(signal.SIGTERM)
        for _ in range(20):
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGHUP)
            time.sleep(0.01)
        assert process.wait(60) == 0, "and none during the end either"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def wait_until_ignored(pid):
    """Wait until a process has a handler for SIGHUP."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with pathlib.Path(f"/proc/{pid}/status").open() as status:
            caught = next(line for line in status if line.startswith("SigCgt:"))
        if int(caught.split()[1], 16) & (1 << (signal.SIGHUP - 1)):
            return
        time.sleep(0.005)
    raise AssertionError("it never took SIGHUP")


def test_a_terminal_that_is_closed_ends_a_gateway_that_was_started_in_it(tmp_path):
    master, slave = pty.openpty()
    environment = clean_environment({"LCP_GATEWAY_HTTP_ADDR": "127.0.0.1:0", "XDG_STATE_HOME": str(tmp_path)})
    process = subprocess.Popen(
        [sys.executable, "-c", IN_A_TERMINAL],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment,
        start_new_session=True,
    )
    os.close(slave)
    try:
        said = b""
        while b"listening on" not in said:
            said += os.read(master, 4096)
        process.send_signal(signal.SIGHUP)
        while b"configuration reloaded" not in said:
            said += os.read(master, 4096)
        os.close(master)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


IN_A_TERMINAL = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from lcp_gateway.cli.program import run
sys.exit(run(["serve", "--embedded"]))
"""


# -- proxies --------------------------------------------------------------------------------------


def test_a_proxy_is_trusted_once_it_is_configured(now):
    said = {"X-Forwarded-For": "198.51.100.7", "X-Forwarded-Proto": "https"}

    def client_told():
        request_id = ask(now, headers=said).headers["x-request-id"]

        def lines():
            asked = [line for line in now.running.json_logs() if line["event"] == "chat completion"]
            return [line for line in asked if line["request_id"] == request_id]

        eventually(lines)
        return lines()[0].get("client")

    assert client_told() is None
    now.take('trusted_proxies = ["127.0.0.1"]')
    assert client_told() == "198.51.100.7"
    now.take('trusted_proxies = ["10.0.0.0/8"]')
    assert client_told() is None
