"""What the tests of selling share."""

from tests.support.postgres import postgres  # noqa: F401 - a fixture
from tests.system.money.conftest import compiled_once  # noqa: F401 - a fixture
