"""The official SDK's completions and embeddings: at nodes that serve them, and through chat at those that only chat."""

import base64
import json
import struct

import openai
import pytest

from tests.support.http_node import HttpNodeThread, http_nodes, vector_of
from tests.support.wire import post
from tests.system.routing.providers import COMPLETIONS, EMBEDDINGS, row, served_by

PEERS_MODEL, NODES_MODEL, NATIVE_MODEL = "echo-1", "llama3.2:latest", "native-7b"
THROUGH_CHAT = pytest.mark.parametrize("model", [PEERS_MODEL, NODES_MODEL])
SAYS = {PEERS_MODEL: "This is the echo node. You said: ", NODES_MODEL: "chatty says: ", NATIVE_MODEL: "native says: "}
EVERY = pytest.mark.parametrize("model", SAYS)


@pytest.fixture(scope="module")
def nodes():
    made = {
        "chatty": HttpNodeThread(name="chatty", models=(NODES_MODEL,)),
        "native": HttpNodeThread(name="native", models=(NATIVE_MODEL, "nomic-embed-text")),
        "ollama": HttpNodeThread(name="ollama", style="ollama", models=("mxbai-embed-large",)),
    }
    with http_nodes(*made.values()):
        yield made


@pytest.fixture(scope="module")
def served(nodes):
    rows = [
        row(nodes["chatty"], endpoints=["chat"]),
        row(nodes["native"], endpoints=["chat", "completions", "embeddings"]),
        row(nodes["ollama"]),
    ]
    with served_by(*rows, embedded=True) as process:
        yield process


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=served.api_url, api_key="unused", max_retries=0) as made:
        yield made


@pytest.fixture(autouse=True)
def unheard(nodes):
    for node in nodes.values():
        node.requests.clear()


# Completions.


@EVERY
def test_a_completion_is_answered(client, nodes, model):
    raw = client.completions.with_raw_response.create(model=model, prompt="say hi", max_tokens=50)
    answer = raw.parse()
    assert answer.object == "text_completion" and answer.model == model
    [choice] = answer.choices
    assert choice.text == SAYS[model] + "say hi"
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert answer.usage.completion_tokens > 0
    adapter = None if model == NATIVE_MODEL else "completions-as-chat"
    assert raw.headers.get("x-lcp-adapter") == adapter
    assert raw.headers["x-lcp-payment"] == ("settled" if model == PEERS_MODEL else "none")
    assert "x-lcp-routing" not in raw.headers
    paths = [call.path for node in nodes.values() for call in node.calls()]
    assert paths == {PEERS_MODEL: [], NODES_MODEL: ["/v1/chat/completions"], NATIVE_MODEL: [COMPLETIONS]}[model]


@EVERY
def test_a_completion_streams_piece_by_piece(client, model):
    raw = client.completions.with_raw_response.create(model=model, prompt="say hi", stream=True)
    chunks = list(raw.parse())
    assert "".join(chunk.choices[0].text for chunk in chunks) == SAYS[model] + "say hi"
    assert len(chunks) >= 4
    assert all(chunk.object == "text_completion" for chunk in chunks)
    assert (raw.headers.get("x-lcp-adapter") is None) is (model == NATIVE_MODEL)
    if model != NATIVE_MODEL:
        assert [chunk.choices[0].finish_reason for chunk in chunks].count("stop") == 1
        assert chunks[-1].choices[0].finish_reason == "stop"


@EVERY
def test_usage_comes_last_in_a_stream_that_asks_for_it(client, model):
    *_, last = client.completions.create(model=model, prompt="hi", stream=True, stream_options={"include_usage": True})
    assert last.choices == [] and last.usage.total_tokens > 0


@EVERY
@pytest.mark.parametrize("stream", [False, True])
def test_echo_repeats_the_prompt_first(client, model, stream):
    made = client.completions.create(model=model, prompt="say hi", echo=True, stream=stream)
    text = "".join(c.choices[0].text for c in made) if stream else made.choices[0].text
    assert text == "say hi" + SAYS[model] + "say hi"


@EVERY
def test_a_list_of_one_prompt_is_a_prompt(client, model):
    [choice] = client.completions.create(model=model, prompt=["say hi"]).choices
    assert choice.text == SAYS[model] + "say hi"


@pytest.mark.parametrize("model", [NODES_MODEL, NATIVE_MODEL])
@pytest.mark.parametrize("stream", [False, True])
def test_several_answers_to_one_prompt(client, model, stream):
    made = client.completions.create(model=model, prompt="hi", n=3, stream=stream)
    texts = ["", "", ""]
    for answer in made if stream else [made]:
        for choice in answer.choices:
            texts[choice.index] += choice.text
    assert texts == [SAYS[model] + "hi"] * 3


@THROUGH_CHAT
def test_log_probabilities_are_requested_with_chats_parameters(client, nodes, model):
    """Neither node returns log probabilities: the request must be no error, and be passed on."""
    answer = client.completions.create(model=model, prompt="hi", logprobs=2, temperature=0.5)
    assert answer.choices[0].text == SAYS[model] + "hi"
    if model == NODES_MODEL:
        [call] = nodes["chatty"].calls()
        asked = json.loads(call.body)
        assert asked["logprobs"] is True and asked["top_logprobs"] == 2
        assert asked["temperature"] == 0.5 and "prompt" not in asked
        assert asked["messages"] == [{"role": "user", "content": "hi"}]


@THROUGH_CHAT
@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"prompt": ["one", "two"]}, "prompt"),
        ({"prompt": [1, 2, 3]}, "prompt"),
        ({"prompt": [[1, 2], [3]]}, "prompt"),
        ({"suffix": "the end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 2, "echo": True}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
    ],
)
def test_parameters_that_chat_does_not_have_are_refused_by_name_before_a_provider_is_asked(
    client, served, nodes, model, more, param
):
    before = len(served.events())
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{"model": model, "prompt": "hi", **more})
    assert caught.value.param == param
    assert caught.value.response.headers["x-lcp-payment"] == "none"
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert len(served.events()) == before
    assert not any(node.calls() for node in nodes.values())


def test_a_node_that_serves_completions_gets_all_of_that_and_every_byte(client, served, nodes):
    answer = client.completions.create(model=NATIVE_MODEL, prompt=["one", "two"], suffix="x", n=2)
    assert [choice.text for choice in answer.choices] == [*["native says: one"] * 2, *["native says: two"] * 2]
    raw = b'{ "prompt":[1 ,2],"best_of": 3,"model":"native-7b"}\r\n'
    assert post(served.port, COMPLETIONS, raw).status == 200
    assert nodes["native"].calls()[-1].body == raw


@pytest.mark.parametrize("stream", [False, True])
def test_auto_completes_too_and_names_the_node(client, stream):
    for _ in range(8):
        raw = client.completions.with_raw_response.create(model="auto", prompt="say hi", stream=stream)
        made = raw.parse()
        answers = list(made) if stream else [made]
        info = answers[0].routing_info
        text = "".join(answer.choices[0].text for answer in answers)
        assert text.endswith("say hi") and answers[0].model == info["model"]
        assert json.loads(raw.headers["x-lcp-routing"]) == info
        is_native = info.get("node") == "native"
        assert (raw.headers.get("x-lcp-adapter") is None) is is_native


async def test_the_async_client_completes_and_embeds(served):
    async with openai.AsyncOpenAI(base_url=served.api_url, api_key="unused", max_retries=0) as client:
        whole = await client.completions.create(model=NODES_MODEL, prompt="hi")
        stream = await client.completions.create(model=NODES_MODEL, prompt="hi", stream=True)
        pieces = [chunk.choices[0].text async for chunk in stream]
        assert whole.choices[0].text == "".join(pieces) == "chatty says: hi"
        vector = await client.embeddings.create(model="nomic-embed-text", input="hi")
        assert vector.data[0].embedding == vector_of('"hi"', 8)


# Embeddings.


def test_embeddings_are_asked_for_in_base64_and_come_as_numbers(client, nodes):
    raw = client.embeddings.with_raw_response.create(model="nomic-embed-text", input="hello")
    answer = raw.parse()
    assert answer.data[0].embedding == vector_of('"hello"', 8)
    assert answer.usage.prompt_tokens > 0
    [call] = nodes["native"].calls()
    assert json.loads(call.body)["encoding_format"] == "base64"
    assert raw.headers["x-lcp-peer-id"] == "node:native"
    assert raw.headers["x-lcp-payment"] == "none"


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_each_encoding_is_returned_as_requested(client, encoding):
    raw = client.embeddings.with_raw_response.create(model="nomic-embed-text", input="hello", encoding_format=encoding)
    got = json.loads(raw.content)["data"][0]["embedding"]
    if encoding == "base64":
        got = list(struct.unpack("<8f", base64.b64decode(got)))
    assert got == vector_of('"hello"', 8)


def test_dimensions_are_honoured(client):
    answer = client.embeddings.create(model="nomic-embed-text", input="hello", dimensions=3)
    assert answer.data[0].embedding == vector_of('"hello"', 3)


@pytest.mark.parametrize("given", [["one", "two", "three"], [[1, 2], [3]], [1, 2, 3]])
def test_lists_and_tokens_are_embedded(client, given):
    answer = client.embeddings.create(model="nomic-embed-text", input=given)
    several = given if isinstance(given[0], str | list) else [given]
    assert [row.index for row in answer.data] == list(range(len(several)))
    for one, found in zip(several, answer.data, strict=True):
        assert found.embedding == vector_of(json.dumps(one), 8)


def test_a_server_that_ignores_base64_is_supported(client):
    """The SDK requests base64 and accepts numbers too."""
    answer = client.embeddings.create(model="mxbai-embed-large", input="hello")
    assert answer.data[0].embedding == vector_of('"hello"', 8)


def test_auto_embeds_with_a_model_that_embeds(client):
    for number in range(6):
        raw = client.embeddings.with_raw_response.create(model="auto", input=f"{number}")
        answer = raw.parse()
        assert answer.routing_info["model"] in {"nomic-embed-text", "mxbai-embed-large"}
        assert answer.data[0].embedding == vector_of(f'"{number}"', 8)
        assert json.loads(raw.headers["x-lcp-routing"]) == answer.routing_info


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": "8"}, "dimensions"),
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": {"text": "x"}}, "input"),
    ],
)
def test_invalid_parameters_are_refused_by_name(client, nodes, more, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(**{"model": "nomic-embed-text", "input": "x", **more})
    assert caught.value.param == param
    assert not any(node.calls() for node in nodes.values())


@pytest.mark.parametrize("model", ["text-embedding-3-small", PEERS_MODEL, NODES_MODEL])
def test_a_model_without_embeddings_is_refused_with_those_there_are(client, model):
    with pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(model=model, input="x")
    assert caught.value.code == "model_not_available" and caught.value.param == "model"
    assert caught.value.type == "invalid_request_error"
    assert "mxbai-embed-large, nomic-embed-text" in caught.value.message


def test_without_any_provider_the_error_names_the_available_models(nodes):
    with served_by(row(nodes["chatty"], endpoints=["chat"])) as process:
        answer = post(process.port, EMBEDDINGS, {"model": "nomic-embed-text", "input": "x"})
    assert answer.status == 404 and answer.error["code"] == "model_not_available"
    assert NODES_MODEL in answer.error["message"]
    assert answer.verdict == "none" and answer.headers["x-should-retry"] == "false"


def test_embedding_models_are_not_offered_for_chat(client):
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nomic-embed-text", messages=[{"role": "user", "content": "hi"}])
