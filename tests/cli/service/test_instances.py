"""The files of a gateway, which gateway is meant, and its status."""

from datetime import UTC, datetime, timedelta

import pytest

from lcp_gateway.cli.gateway_client import Address, Readiness, ask_readiness
from lcp_gateway.cli.output import CommandFailed
from lcp_gateway.cli.service.instances import files_of, read_query
from lcp_gateway.cli.service.start import command_line_flags
from lcp_gateway.cli.service.status import RUNNING, STOPPED, GatewayStatus, SpendTotal
from lcp_gateway.config import Settings


@pytest.mark.parametrize(
    ("address", "stem", "url"),
    [
        ("127.0.0.1:8080", "gateway-127.0.0.1-8080", "http://127.0.0.1:8080"),
        (":80", "gateway-0.0.0.0-80", "http://127.0.0.1:80"),
        ("[::1]:8080", "gateway-__1-8080", "http://[::1]:8080"),
        ("[::]:8080", "gateway-__-8080", "http://[::1]:8080"),
        ("LocalHost:1", "gateway-localhost-1", "http://LocalHost:1"),
        ("..:1", "gateway-..-1", "http://..:1"),
        ("hö%st:1", "gateway-h__st-1", "http://hö%st:1"),
    ],
)
def test_the_files_are_named_after_host_and_port(address, stem, url, tmp_path):
    settings = Settings(http_addr=address)
    files = files_of(settings, {"XDG_STATE_HOME": str(tmp_path)})
    assert files.pid_file == tmp_path / "lcp-gateway" / "run" / f"{stem}.pid"
    assert files.log_file == tmp_path / "lcp-gateway" / "run" / f"{stem}.log"
    assert Address.of_settings(settings).url == url


def test_settings_put_them_elsewhere_as_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = Settings(state_dir="run", log_file="my.log", http_tls_cert="c.pem")
    files = files_of(settings)
    assert files.pid_file == tmp_path / "run" / "gateway-127.0.0.1-8080.pid"
    assert files.log_file == tmp_path / "my.log"
    assert Address.of_settings(settings).url.startswith("https://")


def test_flags_are_write_duration_as_they_are_read(tmp_path):
    flags = {"http_addr": ":1", "embedded": True, "preflight": False, "log_level": "-x"}
    assert command_line_flags(flags, tmp_path) == [
        "--config", str(tmp_path), "--http-addr=:1", "--embedded", "--no-preflight", "--log-level=-x",
    ]  # fmt: skip


def test_problems_of_other_settings_do_not_matter(tmp_path, monkeypatch):
    file = tmp_path / "config.toml"
    file.write_text("heartbeat_s = 'soon'\nhttp_adr = ':2'\npid_file = 'x.pid'\n")
    monkeypatch.setenv("LCP_GATEWAY_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("LCP_GATEWAY_PORT", "1")
    # All interfaces without a key: the gateway may have been started with one.
    question = read_query({"http_addr": ":1"}, file)
    assert question.problems == ()
    assert question.settings.http_addr == ":1"
    assert question.settings.state_dir == tmp_path
    assert str(question.settings.pid_file) == "x.pid"


@pytest.mark.parametrize("text", ["http_addr = ", "http_addr = 1", "\xff", "stop_timeout_s = '?'"])
def test_problems_of_the_settings_that_name_a_gateway_are_reported(tmp_path, text):
    file = tmp_path / "config.toml"
    file.write_bytes(text.encode("latin-1"))
    question = read_query({}, file)
    assert [str(file) in problem for problem in question.problems] == [True]
    assert question.settings.http_addr == "127.0.0.1:8080"
    with pytest.raises(CommandFailed) as caught:
        question.fail_for_problems()
    assert caught.value.exit_code == 2


def test_a_flag_that_cannot_be_used_is_wrong_use():
    with pytest.raises(CommandFailed, match="--http-addr: must be") as caught:
        read_query({"http_addr": "1"}, None)
    assert caught.value.exit_code == 2


def test_flags_beat_the_environment_and_that_the_file(tmp_path, monkeypatch):
    file = tmp_path / "config.toml"
    file.write_text("http_addr = ':1'\n")
    assert read_query({}, file).settings.http_addr == ":1"
    monkeypatch.setenv("OPENAI_SERVE_HTTP_ADDR", ":2")
    assert read_query({}, file).settings.http_addr == ":2"
    monkeypatch.setenv("LCP_GATEWAY_HTTP_ADDR", ":3")
    assert read_query({}, file).settings.http_addr == ":3"
    assert read_query({"http_addr": ":4"}, file).settings.http_addr == ":4"


def test_where_no_gateway_answers_there_is_no_readiness():
    assert ask_readiness("http://127.0.0.1:9") is None
    assert ask_readiness("https://127.0.0.1:9") is None


def test_a_status_leaves_out_values_that_are_not_known():
    stopped = GatewayStatus(state=STOPPED, url="http://a", now=datetime.now(UTC))
    assert stopped.as_rows() == [("State", "stopped"), ("Address", "http://a")]
    assert stopped.as_json()["ready"] is None
    assert stopped.uptime is None


def test_a_status_has_the_reasons_and_the_spending():
    status = GatewayStatus(
        state=RUNNING,
        url="http://a",
        now=datetime.now(UTC),
        readiness=Readiness(
            ready=False,
            reasons=("no peers", "old"),
            peers=0,
            jobs_in_flight=2,
            nodes={"a": True, "b": False},
        ),
        spent=SpendTotal(purchases=3, settled_msat=12_500, unknown_msat=1_000),
    )
    rows = dict(status.as_rows())
    assert rows["Ready"] == "no: no peers; old"
    assert rows["Nodes"] == "1 of 2 up"
    assert rows["Spent today"] == "12.500 sat in 3 purchases, and 1.000 sat unknown"
    silent = GatewayStatus(
        state=RUNNING, url="http://a", now=datetime.now(UTC), spent_problem="it is off"
    )
    assert dict(silent.as_rows())["Ready"] == "no: it does not answer"
    assert dict(silent.as_rows())["Spent today"] == "not known: it is off"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (59, "59 s"),
        (61, "1 m 1 s"),
        (3_600, "1 h 0 m"),
        (90_000, "1 d 1 h"),
        (-5, "0 s"),
    ],
)
def test_a_length_of_time_is_write_duration_with_its_two_largest_units(seconds, words):
    from lcp_gateway.cli.service.status import _write_duration

    assert _write_duration(timedelta(seconds=seconds)) == words
