import json

import pytest

from lcp_gateway.upstreams.openai.adapter import NoModelList
from tests.upstreams.openai.buying import KEY, failed


async def listed(server, upstream, document):
    server.behave(models_raw=document if isinstance(document, str) else json.dumps(document))
    return {model.id: model for model in await upstream.list_models("a", 60)}


async def test_a_list_holds_the_names_and_their_owners(server, opened):
    (model,) = await opened(server.base_url).list_models("a", 60)
    assert (model.id, model.owned_by) == ("m", "alpha")
    assert model.created > 0
    assert server.requests[0].headers["Authorization"] == f"Bearer {KEY}"


async def test_the_lists_of_each_kind_of_server_are_read(server, opened):
    found = await listed(
        server,
        opened(server.base_url),
        {
            "data": [
                {"id": "vllm", "max_model_len": 4096, "created": 5},
                {"id": "lmstudio", "max_context_length": 8192},
                {"id": "groq", "context_window": 131_072},
                {
                    "id": "openrouter/x",
                    "context_length": 200_000,
                    "max_model_len": 1,
                    "supported_parameters": ["tools", "response_format", "seed"],
                    "architecture": {"input_modalities": ["text", "image"]},
                },
                {"id": "so", "supported_parameters": ["structured_outputs"]},
            ]
        },
    )
    assert {name: model.context_length for name, model in found.items()} == {
        "vllm": 4096,
        "lmstudio": 8192,
        "groq": 131_072,
        "openrouter/x": 200_000,
        "so": 0,
    }
    assert found["openrouter/x"].capabilities == {"tools", "json_schema", "vision"}
    assert found["so"].capabilities == {"json_schema"}
    assert found["vllm"].capabilities == frozenset()
    assert found["vllm"].created == 5


@pytest.mark.parametrize(
    ("document", "names"),
    [
        ({"object": "list", "data": None}, []),
        ({"data": []}, []),
        ({}, []),
        ([{"id": "a"}, {"id": "b"}], ["a", "b"]),
        (["a", "b"], ["a", "b"]),
        ({"models": [{"name": "llama3:latest", "model": "llama3:latest"}]}, ["llama3:latest"]),
        ({"data": [{"id": ""}, {"id": "x" * 257}, {"id": "a\nb"}, {"id": " a"}, {"id": 1}]}, []),
        ({"data": [None, 3, [], {"no": 1}, {"id": "ok", "created": "x", "owned_by": 7}]}, ["ok"]),
        (
            {
                "data": [
                    {
                        "id": "ok",
                        "context_length": True,
                        "supported_parameters": "tools",
                        "architecture": {"input_modalities": None},
                    }
                ]
            },
            ["ok"],
        ),
    ],
)
async def test_unusual_lists_are_read_as_far_as_possible(server, opened, document, names):
    assert list(await listed(server, opened(server.base_url), document)) == names


@pytest.mark.parametrize("document", ["<html>", '"text"', '{"data": {"a": 1}}', ""])
async def test_what_is_no_list_is_an_error(server, opened, document):
    error = await failed(listed(server, opened(server.base_url), document))
    assert error.status == "DATA_LOSS"
    assert not isinstance(error, NoModelList)


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_a_node_without_a_list_is_distinguished_from_one_that_is_down(server, opened, status):
    server.behave(models_status=status)
    assert isinstance(await failed(opened(server.base_url).list_models("a", 60)), NoModelList)


async def test_a_list_that_fails_or_hangs_says_so(server, opened):
    gone = []
    upstream = opened(server.base_url, options={"on_down": gone.append})
    server.behave(models_status=503)
    assert (await failed(upstream.list_models("a", 60))).status == "UNAVAILABLE"
    server.stop()
    assert (await failed(upstream.list_models("a", 60))).status == "UNAVAILABLE"
    assert gone == [], "a failed list takes no node out"


async def test_a_list_is_bounded(server, opened):
    upstream = opened(server.base_url)
    assert len(await listed(server, upstream, [f"m{i}" for i in range(10_050)])) == 10_000
    error = await failed(listed(server, upstream, json.dumps(["x" * 100] * 90_000)))
    assert "too long" in error.message
