"""The files of a gateway, how commands find their gateway, and the lock that excludes concurrent commands."""

import threading

import pytest

from lcp_gateway.cli.gateway_client import Address
from lcp_gateway.cli.output import CommandFailed
from lcp_gateway.cli.service import instances
from lcp_gateway.cli.service.instances import LockTimeout, files_of, locked, read_query
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


def test_only_one_holds_the_lock_and_it_leaves_no_file(tmp_path):
    path, inside, most = tmp_path / "x.lock", [], []

    def work():
        for _ in range(20):
            with locked(path, 30, lambda: None):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 80
    assert max(most) == 1
    assert not path.exists()


def test_waiting_too_long_for_the_lock_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(instances, "_REPORT_AFTER_S", 0.0)
    path, reported = tmp_path / "x.lock", []
    with locked(path, 1, lambda: None):
        with pytest.raises(LockTimeout), locked(path, 0.2, lambda: reported.append(1)):
            pass
        assert path.exists()
    assert reported == [1]
