"""The routes in front of the loaded models, without a process."""

import contextlib

from aiohttp.test_utils import TestClient, TestServer

from lcp_gateway.local_models.options import LocalModel, LocalModelOptions
from lcp_gateway.local_models.server import ModelRoutes


class BrokenPool:
    """A pool with an error in its code."""

    @contextlib.asynccontextmanager
    async def use(self, name):
        raise KeyError(name)
        yield


async def test_an_error_in_the_code_is_not_told_as_a_model_that_is_missing():
    options = LocalModelOptions((LocalModel("chat", hf_repo="o/r"),), "llama-server", "folder")
    routes = ModelRoutes(options, BrokenPool(), session=None, key="k")
    async with TestClient(TestServer(routes.application()), headers={"authorization": "Bearer k"}) as client:
        answers = [await client.post("/v1/chat/completions", json={"model": name}) for name in ("other", "chat")]
        assert [answer.status for answer in answers] == [404, 500]
