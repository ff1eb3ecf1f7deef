"""``start``: how the gateway's flags are passed on; tests/system/background tests the command itself."""

from lcp_gateway.cli.service.start import command_line_flags


def test_flags_are_written_as_they_are_read(tmp_path):
    flags = {"http_addr": ":1", "embedded": True, "preflight": False, "log_level": "-x"}
    assert command_line_flags(flags, tmp_path) == [
        "--config", str(tmp_path), "--http-addr=:1", "--embedded", "--no-preflight", "--log-level=-x",
    ]  # fmt: skip
