"""Settings with which a gateway that sells, or that is open, does not start."""

import subprocess

import pytest

from tests.support.gateway import run_command
from tests.system.selling.seller import selling


def start(tmp_path, **settings: object) -> subprocess.CompletedProcess:
    """Start a gateway that is expected to refuse; ended soon if it does not."""
    env = {"LCP_GATEWAY_HTTP_ADDR": "127.0.0.1:0", "XDG_CONFIG_HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
    env |= {f"LCP_GATEWAY_{name.upper()}": str(value) for name, value in settings.items()}
    return run_command("serve", "--embedded", env=env)


def is_refused(ended: subprocess.CompletedProcess, *words: str) -> None:
    assert ended.returncode != 0
    assert "listening" not in ended.stdout
    assert "Traceback" not in ended.stderr
    for word in words:
        assert word in ended.stderr.lower(), ended.stderr


@pytest.mark.parametrize("address", [":0", "0.0.0.0:0", "[::]:0"])
def test_an_open_gateway_does_not_listen_on_the_network_without_allow_open(tmp_path, address):
    is_refused(start(tmp_path, http_addr=address), "allow_open", "http_addr")


def test_api_keys_with_auth_none_are_refused(tmp_path):
    is_refused(start(tmp_path, http_addr=":0", auth="none", api_keys="sk-of-the-test"), "allow_open")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"auth": "keys", "api_keys": ""}, ["api_keys"]),
        ({"journal_url": "off"}, ["journal"]),
        ({"topup_min_msat": "10", "topup_max_msat": "5"}, ["topup"]),
    ],
)
def test_invalid_settings_are_refused(tmp_path, settings, words):
    given = {k.removeprefix("LCP_GATEWAY_").lower(): v for k, v in selling().items()}
    is_refused(start(tmp_path, **{**given, **settings}), *words)


@pytest.mark.parametrize(
    "settings",
    [
        {"redis_url": "http://user:hunter2-of-the-test@127.0.0.1/0"},
        {"redis_url": "redis://user:hunter2-of-the-test@127.0.0.1:port/0"},
        {"journal_url": "postgres//user:hunter2-of-the-test@127.0.0.1:port/0", "http_addr": "no"},
        {"admin_key": "hunter2-of-the-test with a space"},
        {"api_keys": "hunter2-of-the-test\u00e9"},
    ],
)
def test_a_refusal_shows_no_secret(tmp_path, settings):
    given = {k.removeprefix("LCP_GATEWAY_").lower(): v for k, v in selling().items()}
    ended = start(tmp_path, **{**given, **settings})
    is_refused(ended)
    assert "hunter2" not in ended.stderr + ended.stdout


def test_tokens_need_one_secret_where_gateways_share_a_database(tmp_path, postgres):
    with postgres.fresh_database() as url:
        given = {k.removeprefix("LCP_GATEWAY_").lower(): v for k, v in selling().items()}
        is_refused(start(tmp_path, **given, l402="true", journal_url=url), "l402_secret")
