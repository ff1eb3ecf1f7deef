"""Finds the programs that tests run and Python does not bring along; if one is missing, the test is skipped."""

import os
import shutil
from pathlib import Path

import pytest

JS_FOLDER = Path(__file__).parents[2] / ".venv" / "js"
_HINT = "./scripts/test-tools installs what it can"


def require_tool(name: str) -> str:
    """Return the path of a program, or skip the test; where CI=true it must be installed."""
    return _required(shutil.which(name), f"{name} is not installed")


def require_js_package(name: str) -> Path:
    """Return the folder of an npm package of the tests, or skip as ``require_tool`` does."""
    folder = JS_FOLDER / "node_modules" / name
    found = _required(folder if folder.is_dir() else None, f"the npm package {name} is absent")
    return Path(found)


def _required(found: str | Path | None, problem: str) -> str:
    if found is None:
        reason = f"{problem} ({_HINT})"
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return str(found)
