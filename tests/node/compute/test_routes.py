import orjson
import pytest

from lcp_gateway.lightning.error_codes import ErrorCode
from lcp_gateway.node.compute.deterministic import DeterministicBackend
from lcp_gateway.node.compute.echo import EchoBackend
from lcp_gateway.node.compute.routes import ComputeRoutes
from lcp_gateway.node.lcp.messages import CHAT, RESPONSES
from lcp_gateway.node.ports import ComputeError


class Scripted:
    """A backend whose result is its name."""

    def __init__(self, name, models=()):
        self.name, self.listed, self.closed = name, models, 0

    async def models(self):
        return self.listed

    async def run(self, *, job_id, task_kind, model, body, stream):
        yield f"{self.name} {task_kind} {model} {body!r} {stream}".encode()

    async def close(self):
        self.closed += 1


async def result_of(backend, *, kind=CHAT, model="m", body=b"{}", stream=False):
    chunks = backend.run(job_id=bytes(32), task_kind=kind, model=model, body=body, stream=stream)
    return b"".join([chunk async for chunk in chunks])


async def test_each_model_runs_at_its_own_backend():
    routes = ComputeRoutes({"a": Scripted("one"), "b": Scripted("two")}, Scripted("three"))

    assert (await result_of(routes, model="a")).startswith(b"one ")
    assert (await result_of(routes, model="b")).startswith(b"two ")
    assert await result_of(routes, model="c", kind=RESPONSES, stream=True) == b"three " + (
        f"{RESPONSES} c {b'{}'!r} True".encode()
    )


async def test_a_model_without_a_backend_is_refused():
    with pytest.raises(ComputeError) as caught:
        await result_of(ComputeRoutes({"a": Scripted("one")}), model="b")

    assert caught.value.code is ErrorCode.UNSUPPORTED_TASK


async def test_models_are_those_with_a_backend_and_those_that_the_other_lists():
    routes = ComputeRoutes({"a": Scripted("one")}, Scripted("two", ("b", "a")))

    assert await routes.models() == ("a", "b")
    assert await ComputeRoutes({"a": Scripted("one")}).models() == ("a",)


async def test_each_backend_is_closed_once():
    one, two = Scripted("one"), Scripted("two")
    await ComputeRoutes({"a": one, "b": one}, two).close()

    assert (one.closed, two.closed) == (1, 1)


async def test_the_echo_runs_jobs_of_both_kinds_whole_and_streamed():
    chat = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]})
    responses = orjson.dumps({"model": "m", "input": "hello"})
    echo = EchoBackend()

    assert b"You said: hello" in await result_of(echo, body=chat)
    assert b"You said: hello" in await result_of(echo, kind=RESPONSES, body=responses)
    assert (await result_of(echo, body=chat, stream=True)).endswith(b"data: [DONE]\n\n")
    assert b"response.completed" in await result_of(echo, kind=RESPONSES, body=responses, stream=True)


async def test_the_echo_gives_what_is_there_at_once_in_one_piece_and_at_a_pace_token_by_token():
    body = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "one two three"}]})

    async def pieces(echo):
        return [piece async for piece in echo.run(job_id=bytes(32), task_kind=CHAT, model="m", body=body, stream=True)]

    (at_once,) = await pieces(EchoBackend())
    paced = await pieces(EchoBackend(10_000))
    assert len(paced) == at_once.count(b"\n\n")
    assert len(b"".join(paced)) == len(at_once)


async def test_the_echo_refuses_a_request_that_it_cannot_read():
    with pytest.raises(ComputeError) as caught:
        await result_of(EchoBackend(), body=b'{"model":"m","messages":"SECRET')

    assert caught.value.code is ErrorCode.UNSUPPORTED_PARAMS
    assert "SECRET" not in caught.value.message


async def test_the_deterministic_backend_has_the_same_bytes_for_each_job():
    assert await result_of(DeterministicBackend()) == b"deterministic-output"
    assert await result_of(DeterministicBackend(b"x"), model="other", stream=True) == b"x"
