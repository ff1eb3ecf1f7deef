"""The configuration reference is complete, and the committed pages are up to date."""

import subprocess
import sys
from pathlib import Path

from lcp_gateway.config import docs_markdown, specs, written
from lcp_gateway.config.tables import columns

ROOT = Path(__file__).parents[2]


def test_the_pages_are_fresh():
    checked = subprocess.run(
        [sys.executable, ROOT / "scripts" / "gen-docs", "--check"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert checked.returncode == 0, checked.stderr


def test_every_name_of_every_setting_is_in_the_reference():
    page = docs_markdown()
    for spec in specs().values():
        assert f"### `{spec.name}`" in page
        assert f"`{spec.environment}`" in page
        assert spec.description in page
        assert not spec.openai_serve or f"`{spec.openai_serve}`" in page
        assert not spec.openclaw or f"`{spec.openclaw}`" in page
        assert not spec.flag or f"`{spec.flag}`" in page


def test_every_key_of_a_table_is_in_the_reference_with_its_meaning():
    page = docs_markdown()
    for spec in specs().values():
        for column in columns(spec.form.row) if spec.form.row else ():
            assert f"| `{column.name}` | {column.form.name}" in page
            assert column.description
            assert column.description in page


def test_no_secret_and_no_table_has_a_flag():
    page = docs_markdown()
    for spec in specs().values():
        if spec.secret or spec.form.row:
            assert f"--{spec.name.replace('_', '-')}`" not in page


def test_a_value_is_written_as_in_toml():
    assert written(True) == "true"
    assert written(5.0) == "5"
    assert written(("a", 'b"c')) == '["a", "b\\"c"]'
    assert written({"a": "b"}) == '{ "a" = "b" }'
    assert written(Path("/x")) == '"/x"'
