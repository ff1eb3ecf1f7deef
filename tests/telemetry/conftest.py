"""Logging as it was, after each test that configures it."""

import logging

import pytest
import structlog


@pytest.fixture(autouse=True)
def restored():
    """Restore the process's logging after each test."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)
