"""The official JavaScript SDK, in node: chat, Responses, streams and errors."""

import json
import subprocess

import pytest

from tests.support.documented import examples, pointed_at
from tests.support.gateway import clean_environment
from tests.support.tools import JS_FOLDER, require_js_package, require_tool

ECHO = "This is the echo node. You said: hello"
PRELUDE = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: "BASE_URL/v1", apiKey: "unused", maxRetries: 3 });
const messages = [{ role: "user", content: "hello" }];
const say = (value) => console.log(JSON.stringify(value));
async function failing(call) {
  try {
    const answer = await call();
    let count = 0;
    if (answer[Symbol.asyncIterator]) for await (const _ of answer) count += 1;
    say({ raised: null, count });
  } catch (error) {
    say({
      raised: error.constructor.name, status: error.status ?? null, code: error.code ?? null,
      param: error.param ?? null, type: error.type ?? null, id: error.requestID ?? null,
      payment: error.headers?.get("x-lcp-payment") ?? null,
    });
  }
}
"""


@pytest.fixture
def node(running):
    """Run a module in node, as if it stood in a project that has the SDK; return what it printed."""
    program = require_tool("node")
    require_js_package("openai")

    def run(source):
        ran = subprocess.run(
            [program, "--input-type=module", "-"],
            input=source,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=JS_FOLDER,
            env=clean_environment({}),
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    return run


@pytest.fixture
def js(node, running):
    """Run lines after the prelude; return the values that they said."""

    def run(source):
        whole = PRELUDE.replace("BASE_URL", running.base_url) + source
        return [json.loads(line) for line in node(whole).splitlines()]

    return run


@pytest.mark.parametrize("number", range(2))
def test_the_documented_lines_print_the_answer(node, running, account, number):
    example = examples("OpenAI SDK for JavaScript", "js")[number]
    assert node(pointed_at(example, running.base_url)).strip() == ECHO
    assert account.accepts == 1


def test_chat_and_responses_come_whole_and_streamed(js, account):
    said = js("""
const chat = await client.chat.completions.create({ model: "echo-1", messages });
say([chat.choices[0].message.content, chat._request_id.slice(0, 4)]);
const chunks = [];
for await (const chunk of await client.chat.completions.create(
  { model: "echo-1", messages, stream: true, stream_options: { include_usage: true } })) chunks.push(chunk);
say([chunks.map((c) => c.choices[0]?.delta?.content ?? "").join(""), chunks.at(-1).usage.completion_tokens]);
const response = await client.responses.create({ model: "echo-1", input: "hello" });
say([response.output_text, response.status]);
const types = [];
for await (const event of await client.responses.create(
  { model: "echo-1", input: "hello", stream: true })) types.push(event.type);
say([types[0], types.at(-1)]);
""")
    assert said == [[ECHO, "req_"], [ECHO, 8], [ECHO, "completed"], ["response.created", "response.completed"]]
    assert account.accepts == account.payments == 4


def test_errors_have_their_classes_and_parts(js, account):
    [unknown, empty] = js("""
await failing(() => client.chat.completions.create({ model: "no-such-model", messages }));
await failing(() => client.chat.completions.create({ model: "echo-1", messages: [] }));
""")
    assert unknown.pop("id").startswith("req_")
    assert unknown == {
        "raised": "NotFoundError",
        "status": 404,
        "code": "model_not_available",
        "param": "model",
        "type": "invalid_request_error",
        "payment": "none",
    }
    assert (empty["raised"], empty["param"]) == ("BadRequestError", "messages")
    assert account.accepts == 0


def test_what_fails_after_payment_is_paid_once(js, account):
    said = js("""
for (const fault of ["fail-after-payment", "execute-code-unavailable", "stream-cut"])
  await failing(() => client.responses.create({ model: `fault/${fault}`, input: "hello" }));
""")
    assert [answer["status"] for answer in said] == [429, 502, 502]
    assert [answer["payment"] for answer in said] == ["settled", "unknown", "unknown"]
    assert account.accepts == 3


def test_a_cut_stream_raises_in_chat_and_responses(js, account):
    said = js("""
for (const fault of ["stream-cut", "stream-cut-silently"]) {
  const model = `fault/${fault}`;
  await failing(() => client.chat.completions.create({ model, messages, stream: true }));
  await failing(() => client.responses.create({ model, input: "hello", stream: true }));
}
""")
    assert [(answer["raised"], answer["code"]) for answer in said] == 4 * [("APIError", "undelivered")]
    assert account.accepts == 4


def test_models_are_listed_and_found(js):
    [names] = js("""
const listed = await client.models.list();
say([listed.data.some((m) => m.id === "echo-1"), (await client.models.retrieve("fault/no-route")).id]);
""")
    assert names == [True, "fault/no-route"]
