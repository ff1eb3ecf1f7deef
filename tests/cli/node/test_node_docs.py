"""docs/node.md says what the code needs: the calls of a macaroon, settings that are read, flags that are there."""

import re
from pathlib import Path

import pytest

from lcp_gateway.cli.node.assembly import open_backends
from lcp_gateway.node.compute.routes import ComputeRoutes
from lcp_gateway.node.lnd.permissions import needed
from lcp_gateway.node.settings.loading import load_settings
from tests.support.promql import ROOT


@pytest.fixture(scope="module")
def page():
    return (ROOT / "docs" / "node.md").read_text()


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def test_the_macaroon_allows_the_calls_that_the_node_makes_and_no_others(page):
    named = re.findall(r"uri:(\S+)", page)
    holds = {"sells": True, "holds": True}
    of = {"every": {}, "sells": {"sells": True}, "holds": holds, "connects": {**holds, "connects": True}}
    uris = {
        name: [
            permission.uri.removeprefix("uri:")
            for permission in needed(**{"buys": True, "sells": False, "holds": False, **more})
        ]
        for name, more in of.items()
    }
    assert named == uris["connects"]
    assert named[:-1] == uris["holds"]
    assert named[:9] == uris["every"]
    assert named[:7] == [it.uri.removeprefix("uri:") for it in needed(buys=False, sells=False, holds=False)]
    assert named[:14] == uris["sells"]


def test_the_short_form_of_the_macaroon_covers_those_calls(page):
    short = [line.split(".macaroon ")[1].split() for line in page.splitlines() if ".macaroon info:read" in line]
    buys, sells = short
    assert {permission.takes for permission in needed(buys=True, sells=False, holds=False)} == set(buys)
    assert {permission.takes for permission in needed(buys=True, sells=True, holds=True)} == set(sells)


def test_the_seller_of_ten_lines_sells(page, tmp_path):
    (document,) = blocks(page, "toml")
    assert len(document.splitlines()) == 10
    place = tmp_path / "node.toml"
    place.write_text(document)
    settings = load_settings(Path(place), {}, {}, folder=tmp_path)
    assert settings.sell.active
    assert isinstance(open_backends(settings.sell), ComputeRoutes)


def test_its_commands_have_flags_that_are_there(page, run):
    commands = re.findall(
        r"^(?:\$ )?lcp-gateway (\w+(?: status)?)((?: \S+)*)$", "\n".join(blocks(page, "\\w*")), re.MULTILINE
    )
    assert {command for command, _ in commands} == {"serve", "node", "sell status"}
    for command, rest in commands:
        help_text = run(*command.split(), "--help").out
        for flag in re.findall(r"--[a-z-]+", rest):
            assert flag in help_text, (command, flag)
