"""The Codex command line: headless, in a home of its own, without any server but the gateway."""

import json
import re
import shlex
import subprocess

import pytest

from tests.support.documented import examples, pointed_at
from tests.support.http_node import HttpNodeThread
from tests.support.tools import require_js_package, require_tool
from tests.system.routing.providers import row, served_by

TIMEOUT_S = 60
# Settings that keep Codex from looking for updates, reporting its use, and fetching plug-ins.
QUIET = """
check_for_update_on_startup = false
web_search = "disabled"
"""
ALONE = """
[analytics]
enabled = false

[features]
plugins = false
apps = false
goals = false
shell_tool = false
view_image = {view_image}

[agents]
enabled = false

[tools.experimental_request_user_input]
enabled = false
"""


@pytest.fixture
def codex(running, tmp_path):
    """Run the documented command with the documented settings, and those that turn off its other requests."""
    package = require_js_package("@openai/codex")
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    # Only node is on its path: no git that could fetch, no shell tools.
    (bin_folder / "node").symlink_to(require_tool("node"))
    home, folder = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    folder.mkdir()

    def run(model="echo-1", *, tool=False, retries=False, at=running, resume_with=""):
        [config] = examples("Codex", "toml")
        if retries:
            config = "".join(line for line in config.splitlines(keepends=True) if "request_max_retries" not in line)
        config = QUIET + pointed_at(config, at.base_url).replace("echo-1", model)
        (home / "config.toml").write_text(config + ALONE.format(view_image=str(tool).lower()))
        [lines] = examples("Codex", "sh")
        export, command = lines.splitlines()
        name, _, value = export.removeprefix("export ").partition("=")
        program, *arguments = shlex.split(command)
        assert program == "codex"
        if resume_with:
            arguments = [*arguments[:-1], "resume", "--last", resume_with]
        return subprocess.run(
            [package.parents[1] / ".bin" / "codex", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
            cwd=folder,
            # No variable of the outer environment is passed on, in particular no proxy.
            env={"PATH": str(bin_folder), "HOME": str(home), "CODEX_HOME": str(home), name: value},
        )

    return run


def test_a_prompt_is_answered_and_bought_once(codex, account):
    ran = codex()
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "This is the echo node. You said: hello"
    assert account.accepts == account.payments == 1
    # Codex prints a warning for a setting that it does not know.
    assert not re.search("unrecognized|deprecated", ran.stderr), ran.stderr


def test_a_turn_with_a_tool_is_one_more_purchase(codex, account):
    ran = codex(tool=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("This is the echo node. The tool answered: unable to locate image")
    assert len({event["job_id"] for event in account.seen("accept")}) == account.accepts == 2


@pytest.mark.parametrize("fault", ["stream-cut", "execute-code-unavailable", "fail-after-payment"])
def test_what_fails_after_payment_is_paid_once_with_the_documented_settings(codex, account, fault):
    ran = codex(f"fault/{fault}")
    assert ran.returncode != 0
    assert "ERROR" in ran.stderr
    assert "You said: hello" not in ran.stdout
    assert account.accepts == 1


def test_its_retries_of_a_request_join_what_was_paid(codex, account):
    # It retries a 502 in spite of x-should-retry, with the same bytes under the same x-client-request-id.
    ran = codex("fault/execute-code-unavailable", retries=True)
    assert ran.returncode != 0
    assert account.accepts == 1


def test_an_unknown_model_is_an_error_and_costs_nothing(codex, account):
    ran = codex("no-such-model")
    assert ran.returncode != 0
    assert "no connected provider offers the model" in ran.stderr
    assert account.accepts == 0


def test_a_second_turn_of_a_session_is_bought_once_and_sees_the_first(codex):
    node = HttpNodeThread("one", ("m",))
    with node, served_by(row(node, endpoints=["responses"])) as served:
        first = codex("m", at=served)
        second = codex("m", at=served, resume_with="and now?")
        assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
        assert first.stdout.strip() == "one says: hello"
        assert second.stdout.strip() == "one says: and now?"
        asked = [json.loads(call.body) for call in node.calls()]
    assert len(asked) == 2
    # It sends the whole conversation again, answers included, with store: false.
    assert all(one["store"] is False and "previous_response_id" not in one for one in asked)
    inputs = [one["input"] for one in asked]
    assert inputs[1][: len(inputs[0])] == inputs[0]
    said = [item["content"][0]["text"] for item in inputs[1][len(inputs[0]) :]]
    assert said[0] == "one says: hello" and said[-1] == "and now?"


def test_a_session_on_paid_peers_buys_each_turn_once(codex, account):
    assert codex().stdout.strip() == "This is the echo node. You said: hello"
    ran = codex(resume_with="and now?")
    assert ran.returncode == 0, ran.stderr
    said = ran.stdout.strip()
    assert said.startswith("This is the echo node. You said: and now? (and before that: ")
    assert account.accepts == account.payments == 2
    before, after = (event["price_msat"] for event in account.seen("accept"))
    assert after > before
