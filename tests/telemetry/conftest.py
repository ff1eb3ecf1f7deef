"""Logging as it was after each test that configures it; a clock, and the values of metrics."""

import logging

import pytest
import structlog

from lcp_gateway.telemetry.metric_table import PREFIX


@pytest.fixture(autouse=True)
def restored():
    """Restore the process's logging after each test."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def value(metrics):
    """Return the value of a metric of the test's ``metrics``."""

    def read(name, **labels):
        return metrics.registry.get_sample_value(PREFIX + name, labels)

    return read
