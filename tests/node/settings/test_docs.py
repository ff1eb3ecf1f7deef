"""The page of settings against the classes: every key is there, with its default."""

import dataclasses
import re
import tomllib
from types import NoneType
from typing import get_args, get_origin, get_type_hints

import orjson
import pytest

from lcp_gateway.node.settings.model import BackendSettings, ModelSettings, NodeSettings
from lcp_gateway.node.toml import read_dataclass
from tests.support.promql import ROOT

PAGE = (ROOT / "docs" / "node-settings.md").read_text()


def documented(heading):
    """The rows of the table behind a heading, as {key: default}."""
    table = PAGE.partition(heading)[2].partition("| --- | --- | --- |\n")[2].partition("\n\n")[0]
    rows = (line.strip("| ").split(" | ") for line in table.splitlines())
    return {key: default.strip("`") for keys, default, _ in rows for key in re.findall(r"`([a-z_.0-9]+)`", keys)}


def declared(cls, prefix=""):
    """The keys of a class and of its tables, as {key: default}."""
    found, hints = {}, get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            found |= declared(kind, f"{prefix}{field.name}.")
        elif field.default is dataclasses.MISSING:
            found[prefix + field.name] = "must be set"
        elif NoneType in get_args(kind):
            found[prefix + field.name] = "none"
        else:
            value = [] if get_origin(kind) is tuple else field.default
            found[prefix + field.name] = orjson.dumps(value).decode()
    return found


@pytest.mark.parametrize(
    ("heading", "cls"),
    [("## Keys", NodeSettings), ("Each of `sell.models`", ModelSettings), ("Each of `sell.backends`", BackendSettings)],
)
def test_the_page_names_every_key_with_its_default(heading, cls):
    assert documented(heading) == declared(cls)


@pytest.mark.parametrize("example", re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL))
def test_the_examples_are_settings_of_a_node(example):
    settings = read_dataclass(NodeSettings, tomllib.loads(example))

    assert settings.sell.active == ("[[sell.models]]" in example)
