"""A machine of its own for each test."""

import pytest

from tests.support.background import machine as a_machine
from tests.support.ports import free_port


@pytest.fixture
def machine(tmp_path):
    with a_machine(tmp_path) as made:
        yield made


@pytest.fixture
def port():
    return free_port()
