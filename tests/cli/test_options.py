"""Whatever bytes stand on a command line, the commands on books and requests answer with a line."""

import pytest
import typer.main

from lcp_gateway.cli.program import app
from lcp_gateway.config import specs

NO_TEXT = "\udcff"
GROUPS = ("purchases", "accounts", "keys", "wallet", "quote", "route")
# Names of files need not be text, and many settings are such.
FILES = {"config", "body", *specs()}


def commands():
    """Every command of the groups, with its words and its parameters."""
    top = typer.main.get_command(app)
    for name in GROUPS:
        command = top.get_command(None, name)
        inner = getattr(command, "commands", None)
        for below, found in (inner or {"": command}).items():
            yield [name, *filter(None, [below])], found


def cases():
    for words, command in commands():
        for parameter in command.params:
            if parameter.name in FILES or getattr(parameter, "is_flag", False):
                continue
            yield pytest.param(words, command, parameter, id=" ".join([*words, parameter.opts[0]]))


def value_for(parameter, odd):
    return NO_TEXT if parameter is odd else "1"


@pytest.mark.usefixtures("journal")
@pytest.mark.parametrize(("words", "command", "odd"), list(cases()))
def test_bytes_that_are_no_text_are_refused_in_a_line(run, words, command, odd):
    line = list(words)
    for parameter in command.params:
        if parameter.param_type_name == "argument" and (parameter.required or parameter is odd):
            line.append(value_for(parameter, odd))
        elif parameter is odd or parameter.required:
            line += [parameter.opts[0], value_for(parameter, odd)]
    outcome = run(*line)
    assert outcome.code in {1, 2}
    assert "Traceback" not in outcome.err
    assert outcome.err.startswith("lcp-gateway: ")


@pytest.mark.usefixtures("journal")
def test_a_model_of_any_script_is_looked_for(run):
    assert run("purchases", "list", "--model", "модель-🦙", "--json").out == "[]\n"


def test_the_option_is_named(run):
    outcome = run("purchases", "list", "--model", NO_TEXT)
    assert outcome.err == "lcp-gateway: --model: is not UTF-8 text\n"
    assert run("accounts", "create", NO_TEXT).err == "lcp-gateway: NAME: is not UTF-8 text\n"
