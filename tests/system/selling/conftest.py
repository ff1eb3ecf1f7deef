"""What the tests of selling share."""

from tests.support.postgres import postgres  # noqa: F401 - a fixture
