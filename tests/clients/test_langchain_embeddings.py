"""langchain-openai over nodes: embeddings in both of its ways, chat without a model's name, and completions."""

import json

import openai
import pytest

from tests.support.http_node import HttpNodeThread, http_nodes, vector_of
from tests.system.routing.providers import row, served_by


@pytest.fixture(scope="module")
def nodes():
    made = {
        "native": HttpNodeThread(name="native", models=("native-7b", "nomic-embed-text")),
        "ollama": HttpNodeThread(name="ollama", style="ollama", models=("mxbai-embed-large",)),
    }
    with http_nodes(*made.values()):
        yield made


@pytest.fixture(scope="module")
def served(nodes):
    models = {"nomic-embed-text": {"aliases": ["text-embedding-3-small"]}}
    rows = [row(nodes["native"], endpoints=["chat", "responses", "completions", "embeddings"]), row(nodes["ollama"])]
    with served_by(*rows, embedded=True, models=models) as process:
        yield process


@pytest.fixture(scope="module")
def settings(served):
    return {"base_url": served.api_url, "api_key": "unused", "max_retries": 0}


@pytest.fixture(scope="module")
def langchain():
    import langchain_openai

    return langchain_openai


TEXTS = ["one", "two words", "three \u00fc"]


@pytest.mark.parametrize("model", ["nomic-embed-text", "mxbai-embed-large", "text-embedding-3-small"])
def test_texts_are_embedded_as_they_are(langchain, settings, model):
    made = langchain.OpenAIEmbeddings(model=model, check_embedding_ctx_length=False, **settings)
    assert made.embed_documents(TEXTS) == [vector_of(json.dumps(text), 8) for text in TEXTS]
    assert made.embed_query("one") == vector_of('"one"', 8)


async def test_the_async_calls_give_the_same(langchain, settings):
    async with openai.DefaultAsyncHttpxClient() as http_client:
        made = langchain.OpenAIEmbeddings(
            model="nomic-embed-text", check_embedding_ctx_length=False, http_async_client=http_client, **settings
        )
        found = await made.aembed_documents(TEXTS)
    assert found == [vector_of(json.dumps(text), 8) for text in TEXTS]


def test_texts_that_langchain_tokenizes_are_sent_as_token_ids(langchain, settings, nodes, monkeypatch):
    """Its default: langchain tokenizes texts itself. Its table is not on every machine, so a stand-in tokenizer is used."""
    import tiktoken

    class Letters:
        def encode(self, text, **_more):
            return [ord(letter) for letter in text]

        def encode_ordinary(self, text):
            return self.encode(text)

        def decode(self, tokens):
            return "".join(map(chr, tokens))

    monkeypatch.setattr(tiktoken, "encoding_for_model", lambda _name: Letters())
    monkeypatch.setattr(tiktoken, "get_encoding", lambda _name: Letters())
    nodes["native"].requests.clear()
    made = langchain.OpenAIEmbeddings(model="nomic-embed-text", **settings)
    found = made.embed_documents(["ab", "c"])
    assert json.loads(nodes["native"].calls()[-1].body)["input"] == [[97, 98], [99]]
    for vector, tokens in zip(found, [[97, 98], [99]], strict=True):
        # It brings the length of each to one.
        wanted = vector_of(json.dumps(tokens), 8)
        length = sum(x * x for x in wanted) ** 0.5
        is_near = pytest.approx([x / length for x in wanted], rel=1e-5)
        assert vector == is_near or vector == pytest.approx(wanted, rel=1e-5)


def test_dimensions_are_passed_on(langchain, settings):
    made = langchain.OpenAIEmbeddings(
        model="nomic-embed-text", dimensions=4, check_embedding_ctx_length=False, **settings
    )
    assert made.embed_query("one") == vector_of('"one"', 4)


def test_auto_chats_whole_and_streamed(langchain, settings):
    made = langchain.ChatOpenAI(model="auto", **settings)
    for _ in range(5):
        whole = made.invoke("hello there")
        assert whole.content.endswith("hello there")
        pieces = [chunk.content for chunk in made.stream("hello there")]
        assert "".join(pieces).endswith("hello there") and len(pieces) > 2
        assert whole.response_metadata["model_name"] in {"native-7b", "echo-1", "echo-mini", "echo-slow"}


def test_auto_answers_through_the_responses_api(langchain, settings):
    made = langchain.ChatOpenAI(model="auto", use_responses_api=True, **settings)
    assert made.invoke("hello there").text.endswith("hello there")
    assert "".join(c.text for c in made.stream("hello there")).endswith("hello there")


@pytest.mark.parametrize("model", ["native-7b", "echo-1"])
def test_completions_whole_and_streamed(langchain, settings, model):
    made = langchain.OpenAI(model=model, **settings)
    assert made.invoke("say hi").endswith("say hi")
    pieces = list(made.stream("say hi"))
    assert "".join(pieces).endswith("say hi") and len(pieces) > 2


def test_several_prompts_at_once_need_a_node_that_completes(langchain, settings):
    native = langchain.OpenAI(model="native-7b", **settings)
    found = native.generate(["one", "two"]).generations
    assert [each[0].text for each in found] == ["native says: one", "native says: two"]
    with pytest.raises(openai.BadRequestError, match="one prompt"):
        langchain.OpenAI(model="echo-1", **settings).generate(["one", "two"])
    alone = langchain.OpenAI(model="echo-1", batch_size=1, **settings)
    assert [each[0].text[-3:] for each in alone.generate(["one", "two"]).generations] == ["one", "two"]
