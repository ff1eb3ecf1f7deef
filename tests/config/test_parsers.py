"""The notations of values, parsed from text and from TOML alike."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.config import HostPort, load, parse_host_port
from lcp_gateway.config.parsers import parse_duration_s, parse_size_bytes


def test_an_address_has_a_host_and_a_port(subtests):
    for written, expected in [
        ("127.0.0.1:8080", HostPort("127.0.0.1", 8080)),
        (":8080", HostPort("", 8080)),
        ("[::1]:8080", HostPort("::1", 8080)),
        ("[::]:0", HostPort("::", 0)),
        ("localhost:65535", HostPort("localhost", 65535)),
    ]:
        with subtests.test(str(written)):
            assert parse_host_port(written) == expected


def test_a_duration_is_seconds_or_gos_form(subtests):
    for written, seconds in [
        (5, 5),
        (0.25, 0.25),
        ("5", 5),
        (" 2.5 ", 2.5),
        ("5s", 5),
        ("1m30s", 90),
        ("500ms", 0.5),
        ("1h", 3600),
        ("1.5h", 5400),
        (".5s", 0.5),
        ("0", 0),
        ("250us", 0.00025),
        ("250µs", 0.00025),  # noqa: RUF001 - the micro sign is one of the forms
        ("1h0m0.5s", 3600.5),
        ("1000000000ns", 1),
    ]:
        with subtests.test(str(written)):
            assert parse_duration_s(written) == pytest.approx(seconds)


def test_a_size_is_bytes_or_has_a_unit(subtests):
    for written, size in [
        (1, 1),
        ("0", 0),
        ("65536", 65536),
        ("64KiB", 65536),
        ("1MiB", 1048576),
        ("1mib", 1048576),
        ("10MB", 10_000_000),
        ("1.5MiB", 1572864),
        ("1 GiB", 2**30),
        ("12B", 12),
        ("1_000", 1000),
    ]:
        with subtests.test(str(written)):
            assert parse_size_bytes(written) == size


@given(st.text() | st.integers() | st.floats() | st.none() | st.lists(st.text()))
def test_no_value_makes_a_parser_raise_anything_but_a_value_error(value):
    for parse in (parse_duration_s, parse_size_bytes):
        with contextlib.suppress(ValueError):
            assert parse(value) >= 0
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            parse_host_port(value)


def test_the_file_takes_toml_types(tmp_path):
    peer = "02" + "ab" * 32
    path = tmp_path / "config.toml"
    path.write_text(
        f"""
        api_keys = ["k1", "k2"]
        model_allowlist = "a, b"
        timeout_quote_s = 2
        timeout_execute_s = "1m"
        heartbeat_s = 0.5
        max_body_bytes = "1MiB"
        max_header_bytes = 1024
        preflight = false
        lcpd_metadata = {{ macaroon = "00=ff" }}

        [model_map]
        "gpt-5" = "{peer.upper()}"
        """
    )
    path.chmod(0o600)
    settings = load(flags={}, environ={}, config_path=path).settings
    assert settings.api_keys == ("k1", "k2")
    assert settings.model_allowlist == ("a", "b")
    assert (settings.timeout_quote_s, settings.timeout_execute_s, settings.heartbeat_s) == (2, 60, 0.5)
    assert (settings.max_body_bytes, settings.max_header_bytes) == (2**20, 1024)
    assert settings.preflight is False
    assert settings.lcpd_metadata == {"macaroon": "00=ff"}
    assert settings.model_map == {"gpt-5": peer}


def test_the_daemon_is_where_grpc_can_dial(tmp_path, subtests):
    for target in ["h:1", "[::1]:50051", "unix:/a/b", "unix:///a/b", "dns:///h:1", "ipv4:127.0.0.1:1"]:
        with subtests.test(str(target)):
            environ = {"XDG_CONFIG_HOME": str(tmp_path), "LCP_GATEWAY_LCPD_GRPC_ADDR": target}
            assert load(flags={}, environ=environ).settings.lcpd_grpc_addr == target


def test_a_home_folder_is_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    environ = {"XDG_CONFIG_HOME": str(tmp_path), "LCP_GATEWAY_NODE_EVENTS_FILE": "~/events.jsonl"}
    assert load(flags={}, environ=environ).settings.node_events_file == tmp_path / "events.jsonl"
