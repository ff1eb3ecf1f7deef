"""Reads the examples of docs/clients.md, so that the tests run exactly the documented lines."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs" / "clients.md"
BASE_URL = "http://127.0.0.1:8080"

_HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples(heading: str, language: str) -> list[str]:
    """Return the code blocks of one language under a heading, in order."""
    parts = _HEADING.split(DOCS.read_text(encoding="utf-8"))
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    return [text for found, text in _BLOCK.findall(sections[heading]) if found == language]


def pointed_at(example: str, base_url: str) -> str:
    """Return an example with the documented address replaced by a running gateway's."""
    assert BASE_URL in example, "the example does not say where the gateway is"
    return example.replace(BASE_URL, base_url)
