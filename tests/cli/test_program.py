"""The program as a whole: help, version, and errors in one line without a traceback."""

import json
import subprocess
import sys

import pytest

from lcp_gateway.__about__ import __version__
from lcp_gateway.config import Group, specs

COMMANDS = (
    "serve", "start", "stop", "restart", "reload", "status", "logs", "node", "models", "route", "quote", "receipt", "purchases", "spend", "accounts", "keys", "invites", "wallet", "doctor",
    "config",
)  # fmt: skip
SUBCOMMANDS = {
    "config": ("show",),
    "receipt": ("verify", "show"),
    "purchases": ("list", "show", "export", "resolve", "forget"),
    "accounts": ("create", "list", "show", "rename", "delete", "adjust", "statement", "audit", "log"),
    "keys": ("create", "list", "show", "revoke"),
    "invites": ("create", "list", "revoke"),
    "wallet": ("show", "topups", "transactions", "topup", "pay"),
}


@pytest.mark.parametrize("arguments", [["--version"], ["--version", "serve"]])
def test_the_version_is_printed(arguments, run):
    outcome = run(*arguments)
    assert (outcome.code, outcome.out, outcome.err) == (0, f"lcp-gateway {__version__}\n", "")


def test_help_names_every_command(run):
    outcome = run("--help")
    assert outcome.code == 0
    assert all(f"  {command} " in outcome.out for command in COMMANDS)


@pytest.mark.parametrize(("arguments", "commands"), [([name], commands) for name, commands in SUBCOMMANDS.items()])
def test_without_a_command_the_help_is_shown_and_the_code_says_so(arguments, commands, run):
    outcome = run(*arguments)
    assert outcome.code == 2
    assert outcome.err == ""
    assert all(f"  {command} " in outcome.out for command in commands)


def test_a_line_without_a_command_is_one_for_serve(run):
    outcome = run("--timeout-quote-s", "soon")
    assert outcome.code == 2
    assert "--timeout-quote-s: must be a duration" in outcome.err
    assert run("--embedded", "--help").out == run("serve", "--help").out


def test_alone_it_serves(run, monkeypatch):
    monkeypatch.setenv("LCP_GATEWAY_PREFLIGHT_TIMEOUT_S", "0.1")
    monkeypatch.setenv("LCP_GATEWAY_LCPD_GRPC_ADDR", "127.0.0.1:9")
    outcome = run()
    # No daemon runs here, which ``serve`` reports.
    assert outcome.code == 1
    assert "the daemon at 127.0.0.1:9 did not answer" in outcome.err


def test_every_command_explains_itself(run):
    commands = [[name] for name in COMMANDS]
    commands += [[name, command] for name, found in SUBCOMMANDS.items() for command in found]
    outcomes = {" ".join(command): run(*command, "--help") for command in commands}
    assert not {
        name: outcome
        for name, outcome in outcomes.items()
        if outcome.code or not outcome.out.startswith("Usage: lcp-gateway")
    }


@pytest.mark.parametrize("command", [["serve"], ["start"], ["restart"], ["doctor"], ["config", "show"]])
def test_every_setting_but_the_secrets_has_a_flag(command, run):
    shown = run(*command, "--help").out.split()
    for spec in specs().values():
        flag = "--" + spec.name.replace("_", "-")
        # Nor settings that only a table can express.
        assert (flag in shown) is not (spec.secret or spec.form.row is not None), flag


@pytest.mark.parametrize(
    "arguments", [["sreve"], ["serve", "--bogus"], ["serve", "--http-addr"], ["serve", "extra"], ["config", "x"]]
)
def test_wrong_use_is_one_line_and_code_2(arguments, run):
    outcome = run(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.startswith("lcp-gateway: ")
    assert outcome.err.count("\n") == 1


def test_each_problem_of_the_configuration_is_a_line(run, monkeypatch):
    monkeypatch.setenv("LCP_GATEWAY_HTTP_ADR", ":1")
    outcome = run("serve", "--timeout-quote-s", "soon", "--max-price-msat=-1")
    assert outcome.code == 2
    lines = outcome.err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("lcp-gateway: ") for line in lines)
    assert any("did you mean LCP_GATEWAY_HTTP_ADDR?" in line for line in lines)
    assert any("--timeout-quote-s: must be a duration" in line for line in lines)


def test_a_missing_configuration_file_is_named(run, tmp_path):
    outcome = run("serve", "--config", str(tmp_path / "none.toml"))
    assert outcome.code == 2
    assert "none.toml (from --config): cannot be read" in outcome.err


def modules_after(code):
    """Return the modules loaded after running some code in a new interpreter."""
    printed = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return set(printed.stdout.split())


def test_the_version_costs_no_heavy_import():
    loaded = modules_after("from lcp_gateway.cli import main; main(['--version'])")
    assert loaded.isdisjoint({"typer", "pydantic", "rich", "aiohttp", "grpc", "platformdirs"})


def test_the_embedded_node_loads_nothing_that_only_the_gateway_needs():
    loaded = modules_after("import lcp_gateway.cli.serve.node_process, lcp_gateway.node.server")
    assert loaded.isdisjoint({"typer", "pydantic", "rich", "aiohttp"})


def test_serving_starts_without_rich_and_reads_flags_before_the_server_is_imported():
    loaded = modules_after("import lcp_gateway.cli.serve.serve")
    assert loaded.isdisjoint({"rich", "aiohttp", "grpc", "prometheus_client", "psutil", "sqlalchemy"})


@pytest.mark.parametrize("flag", ["--api-key", "--api-keys", "--admin-key"])
def test_a_secret_on_the_command_line_is_refused_with_a_place_for_it(run, flag):
    """The error does not repeat the secret."""
    for written in ([flag, "sk-my-secret"], [f"{flag}=sk-my-secret"]):
        outcome = run("serve", *written)
        assert outcome.code == 2 and "LCP_GATEWAY_A" in outcome.err
        assert "a secret has no flag" in outcome.err and "sk-my-secret" not in outcome.err


@pytest.mark.parametrize(
    ("arguments", "address"),
    [
        (["--port", "9000"], "127.0.0.1:9000"),
        (["--host", "localhost"], "localhost:8080"),
        (["--host", "0.0.0.0", "--port", "1", "--allow-open"], "0.0.0.0:1"),
        (["--host", "::1"], "[::1]:8080"),
        (["--host", "[::1]", "--port", "2"], "[::1]:2"),
    ],
)
def test_host_and_port_are_parts_of_the_address(run, arguments, address):
    shown = json.loads(run("config", "show", "--json", *arguments).out)["settings"]["http_addr"]
    assert shown["value"] == address


def test_the_other_part_of_the_address_stays_as_it_is_configured(run, monkeypatch):
    monkeypatch.setenv("LCP_GATEWAY_HTTP_ADDR", "127.0.0.7:7000")
    shown = json.loads(run("config", "show", "--json", "--port", "1").out)["settings"]
    assert shown["http_addr"]["value"] == "127.0.0.7:1"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "70000"], "--port"),
        (["--port", "x"], "--port"),
        (["--host", "a b"], "--host"),
        (["--port", "1", "--http-addr", ":1"], "says host and port already"),
    ],
)
def test_a_bad_address_is_wrong_use(run, arguments, words):
    outcome = run("config", "show", *arguments)
    assert outcome.code == 2 and words in outcome.err and outcome.err.count("\n") == 1


def test_a_message_does_not_use_the_words_of_a_library(run):
    outcome = run("keys", "create", "acc_1", "--scope", "foo")
    assert outcome.code == 2 and "'foo' is not one of" in outcome.err
    assert "Value error" not in outcome.err


@pytest.mark.parametrize("command", [["serve"], ["start"], ["restart"], ["doctor"], ["config", "show"]])
def test_help_is_grouped_with_the_common_flags_first(run, command, monkeypatch):
    """Regression: the help had 288 lines without a heading."""
    monkeypatch.setenv("COLUMNS", "100")
    shown = run(*command, "--help").out
    assert max(map(len, shown.splitlines())) <= 100
    headings = [line for line in shown.splitlines() if line.endswith(":") and line[0] != " "]
    assert headings[0] == "Common flags:"
    assert [f"{group}:" for group in Group if f"{group}:" in headings] == headings[1 : len(Group) + 1]
    common = shown.split("Common flags:")[1].split("\n\n")[0]
    for flag in ("--config", "--host", "--port", "--embedded", "--verbose"):
        assert f"  {flag}" in common
