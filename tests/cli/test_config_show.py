"""``config show`` shows every value and its source, and no secret."""

import json

from lcp_gateway.config import specs

SECRET = "sk-do-not-print"


def test_every_setting_is_a_line_with_value_and_source(run, monkeypatch):
    monkeypatch.setenv("OPENAI_SERVE_LOG_LEVEL", "debug")
    outcome = run("config", "show", "--max-body-bytes", "2MiB")
    assert outcome.code == 0
    rows = {line.split()[0]: line.split() for line in outcome.out.splitlines()[1:]}
    assert list(rows) == list(specs())
    assert rows["max_body_bytes"] == ["max_body_bytes", "2097152", "--max-body-bytes"]
    assert rows["log_level"] == ["log_level", '"debug"', "OPENAI_SERVE_LOG_LEVEL"]
    assert rows["preflight"] == ["preflight", "true", "default"]


def test_the_file_and_key_of_a_value_are_named(run, tmp_path):
    path = tmp_path / "a folder with a long name" / "config.toml"
    path.parent.mkdir()
    path.write_text("heartbeat_s = 15\n")
    outcome = run("config", "show", "--config", str(path))
    (line,) = [line for line in outcome.out.splitlines() if line.startswith("heartbeat_s")]
    assert line.rstrip().endswith(f"{path}: heartbeat_s")


def test_secrets_are_redacted_everywhere(run, monkeypatch):
    for name in ("API_KEYS", "LCPD_METADATA", "NODE_BACKEND_API_KEY"):
        monkeypatch.setenv(f"LCP_GATEWAY_{name}", f"macaroon={SECRET}")
    for outcome in (run("config", "show"), run("config", "show", "--json")):
        assert outcome.code == 0
        assert SECRET not in outcome.out + outcome.err
        assert outcome.out.count("(redacted)") == 3


def test_json_is_for_programs(run, tmp_path, monkeypatch):
    path = tmp_path / "config.toml"
    path.write_text('node_events_file = "/tmp/e"\nmodel_allowlist = ["a"]\n')
    monkeypatch.setenv("OPENAI_SERVE_MAX_PROMPT_BYTES", "1")
    outcome = run("config", "show", "--json", "--config", str(path), "--no-preflight")
    shown = json.loads(outcome.out)
    assert shown["config_file"] == str(path)
    assert shown["settings"]["preflight"] == {"value": False, "source": "flag", "where": "--no-preflight"}
    assert shown["settings"]["node_events_file"]["value"] == "/tmp/e"
    assert shown["settings"]["model_allowlist"]["value"] == ["a"]
    assert shown["settings"]["http_addr"]["source"] == "default"
    (warning,) = shown["warnings"]
    assert outcome.err == f"lcp-gateway: warning: {warning}\n"


def test_brackets_in_a_value_are_not_taken_for_markup(run):
    outcome = run("config", "show", "--http-addr", "[::1]:80", "--model-allowlist", "[red]x[/red]")
    assert '"[::1]:80"' in outcome.out
    assert '["[red]x[/red]"]' in outcome.out
