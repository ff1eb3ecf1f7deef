"""What the money tests share."""

import pytest

from tests.support.postgres import postgres  # noqa: F401 - a fixture


@pytest.fixture(scope="package", autouse=True)
def compiled_once(pytestconfig, tmp_path_factory):
    """Have the many processes that are started here share their compiled modules, whatever the environment says."""
    cache = getattr(pytestconfig, "cache", None)
    folder = cache.mkdir("compiled") if cache else tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPYCACHEPREFIX", str(folder))
        patch.setenv("PYTHONDONTWRITEBYTECODE", "")
        yield
