"""Arguments that are not valid UTF-8: every command reports them in one line."""

import pytest
import typer.main

from lcp_gateway.cli.program import app
from lcp_gateway.config import specs

NO_TEXT = "\udcff"
GROUPS = ("purchases", "accounts", "keys", "invites", "wallet", "quote", "route")
# File names need not be valid UTF-8, and many settings are file names.
FILES = {"config", "body", *specs()}


def commands():
    """Return every command of the groups, with its name and its parameters."""
    top = typer.main.get_command(app)
    for name in GROUPS:
        command = top.get_command(None, name)
        inner = getattr(command, "commands", None)
        for below, found in (inner or {"": command}).items():
            yield [name, *filter(None, [below])], found


def cases():
    for words, command in commands():
        for parameter in command.params:
            if parameter.name not in FILES and not getattr(parameter, "is_flag", False):
                yield words, command, parameter


def value_for(parameter, odd):
    return NO_TEXT if parameter is odd else "1"


@pytest.mark.usefixtures("journal")
def test_bytes_that_are_not_text_are_refused_in_a_line(run):
    wrong = []
    for words, command, odd in cases():
        line = list(words)
        for parameter in command.params:
            if parameter.param_type_name == "argument" and (parameter.required or parameter is odd):
                line.append(value_for(parameter, odd))
            elif parameter is odd or parameter.required:
                line += [parameter.opts[0], value_for(parameter, odd)]
        outcome = run(*line)
        is_a_line = outcome.err.startswith("lcp-gateway: ") and "Traceback" not in outcome.err
        if outcome.code not in {1, 2} or not is_a_line:
            wrong.append((line, outcome))
    assert not wrong


@pytest.mark.usefixtures("journal")
def test_a_model_of_any_script_is_looked_for(run):
    assert run("purchases", "list", "--model", "модель-🦙", "--json").out == "[]\n"


def test_the_option_is_named(run):
    outcome = run("purchases", "list", "--model", NO_TEXT)
    assert outcome.err == "lcp-gateway: --model: is not UTF-8 text\n"
    assert run("accounts", "create", NO_TEXT).err == "lcp-gateway: NAME: is not UTF-8 text\n"
