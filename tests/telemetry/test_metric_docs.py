"""The metrics reference documents every metric of the table."""

import re

import pytest

from lcp_gateway.telemetry.metric_docs import metrics_markdown
from lcp_gateway.telemetry.metric_table import GRPC_CODES, NODE_SPECS, REASONS, SPECS


@pytest.fixture(scope="module")
def text():
    return metrics_markdown()


def test_each_metric_has_its_row(text):
    def has_its_row(spec):
        start = f"| `{spec.full_name}` | {spec.kind}"
        rows = [line for line in text.splitlines() if line.startswith(start)]
        wanted = [spec.help, *(f"`{label}`" for label in spec.labels)]
        return len(rows) == 1 and all(part in rows[0] for part in wanted)

    assert [spec.name for spec in (*SPECS, *NODE_SPECS) if not has_its_row(spec)] == []


def test_each_label_is_explained(text):
    section = text.split("## Label values")[1].split("##")[0]
    explained = set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))
    assert explained == {label for spec in (*SPECS, *NODE_SPECS) for label in spec.labels}
    assert all(f"`{word}`" in section for word in (*REASONS, *GRPC_CODES))


def test_each_histogram_has_its_bounds(text):
    section = text.split("## Buckets")[1]
    for spec in (*SPECS, *NODE_SPECS):
        assert (f"`{spec.full_name}`" in section) == bool(spec.buckets)


def test_it_ends_with_one_line_break(text):
    assert text.endswith("|\n")
