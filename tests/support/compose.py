"""docker-compose.yml as data, and the variables in it."""

import re

import yaml

from tests.support.promql import ROOT

COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "Dockerfile"


def services() -> dict[str, dict]:
    return yaml.safe_load(COMPOSE.read_text())["services"]


def resolved(text: str) -> str:
    """Return a value as Compose does when the environment is empty."""
    return re.sub(r"\$\{\w+(?::-([^}]*))?\}", lambda found: found[1] or "", text)
