"""Prompts and outputs are in memory only: in no log, file, metric or error."""

import json
import secrets

import pytest

from tests.support.gateway import gateway
from tests.support.http_node import HttpNodeThread
from tests.support.stored import (
    MODEL,
    begun,
    cancel,
    chat,
    delete,
    ended,
    last_response,
    on_http_node,
    respond,
    retrieve,
)
from tests.support.wire import CHAT, RESPONSES, document, get, post

PROMPT = "zanzibar-quokka-prompt"
OUTPUT = "periwinkle-okapi-output"
KEY = "sk-xylophone-quagga-key"
OTHER_KEY = "sk-another-of-the-test"
MINE = {"Authorization": f"Bearer {KEY}"}
THEIRS = {"Authorization": f"Bearer {OTHER_KEY}"}
BOTH = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@pytest.fixture(scope="module")
def node():
    with HttpNodeThread("one", (MODEL,)) as running:
        yield running


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def served(node, state):
    """A gateway at debug level, whose files are kept."""
    settings = {"api_keys": f"{KEY},{OTHER_KEY}", "log_level": "debug", "verbose": "true"}
    # Beside the node's: the folder for state.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "tests.system.routing.providers.gateway",
            lambda *, env, **more: gateway(env={**env, "XDG_STATE_HOME": str(state)}, **more),
        )
        with on_http_node(node, **settings) as running:
            yield running


@pytest.fixture(autouse=True)
def nothing_is_said(served, state, node):
    """After each test, search the process's logs, files and metrics."""
    node.behave(raw=None, content_type="", delay_s=0.0)
    yield
    last = f"after-{secrets.token_hex(4)}"
    get(served.port, "/healthz", {"x-request-id": last})
    served.wait_for_log(last)
    said = served.logs + "\n".join(served.output)
    said += get(served.port, "/metrics", MINE).body.decode()
    for file in state.rglob("*"):
        if file.is_file():
            said += file.read_bytes().decode("latin-1")
    for secret in (PROMPT, OUTPUT, KEY, OTHER_KEY):
        assert secret not in said
    assert "Traceback" not in served.logs


def answers(node, **more) -> None:
    item = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": OUTPUT, "annotations": []}],
    }
    response = {"id": f"resp_{secrets.token_hex(8)}", "status": "completed", "output": [item]}
    node.behave(raw=json.dumps({**response, **more}).encode())


def quiet(*found) -> None:
    """Check that errors hold no prompt and no output."""
    for answer in found:
        assert answer.status >= 400
        for secret in (PROMPT, OUTPUT, KEY):
            assert secret.encode() not in answer.body
            assert secret not in str(answer.fields)


@BOTH
def test_of_everything_that_goes_well(node, served, stream):
    port = served.port
    if not stream:
        answers(node)
    made = respond(port, PROMPT, model=MODEL, headers=MINE, stream=stream, user=PROMPT)
    response_id = last_response(made)["id"] if stream else made.json["id"]
    assert (OUTPUT if not stream else PROMPT).encode() in made.body
    retrieve(port, response_id, headers=MINE)
    retrieve(port, response_id, "?stream=true", headers=MINE)
    get(port, f"{RESPONSES}/{response_id}/input_items", MINE)
    respond(port, PROMPT, model=MODEL, headers=MINE, previous_response_id=response_id)
    delete(port, f"{RESPONSES}/{response_id}", headers=MINE)
    node.behave(raw=None)
    stored = chat(port, PROMPT, model=MODEL, headers=MINE, metadata={PROMPT: PROMPT}).json["id"]
    get(port, f"{CHAT}?metadata[{PROMPT}]={PROMPT}", MINE)
    get(port, f"{CHAT}/{stored}/messages", MINE)
    post(port, f"{CHAT}/{stored}", {"metadata": {"x": PROMPT}}, MINE)


@BOTH
def test_of_the_background(node, served, stream):
    port = served.port
    answers(node)
    key = {**MINE, "Idempotency-Key": secrets.token_hex(8)}
    body = document(
        RESPONSES,
        MODEL,
        PROMPT,
        background=True,
        stream=stream,
        instructions=PROMPT,
        metadata={"p": PROMPT},
        tools=[{"type": "function", "name": "f", "description": PROMPT}],
    )
    made = post(port, RESPONSES, body, key)
    post(port, RESPONSES, body, key)
    if not stream:
        done = ended(port, made.json["id"], headers=MINE)
        assert OUTPUT.encode() in done.body
        retrieve(port, made.json["id"], "?stream=true&starting_after=1", headers=MINE)
    node.behave(raw=None, delay_s=5)
    running = begun(port, PROMPT, model=MODEL, headers=MINE, instructions=PROMPT)
    quiet(retrieve(port, running, headers=THEIRS))
    cancel(port, running, headers=MINE)


@pytest.mark.parametrize(
    "raw",
    [
        OUTPUT.encode(),
        b'{"id":"resp_x","output":"' + OUTPUT.encode() + b'"}',
        b'{"id":"' + OUTPUT.encode() + b' with space","output":[' + b"[" * 3_000,
        b'data: {"response":{"id":"resp_x"},"x":"' + OUTPUT.encode() + b'"\n\n',
        b"\xff\xfe" + OUTPUT.encode(),
    ],
    ids=["text", "no list", "deep", "an event", "no text"],
)
def test_of_results_that_cannot_be_read(node, served, raw):
    port = served.port
    node.behave(raw=raw)
    respond(port, PROMPT, model=MODEL, headers=MINE, store=True)
    retrieve(port, "resp_x", headers=MINE)
    retrieve(port, "resp_x", "?stream=true", headers=MINE)
    chained = respond(port, PROMPT, model=MODEL, headers=MINE, previous_response_id="resp_x")
    if chained.status >= 400:
        quiet(chained)
    response_id = begun(port, PROMPT, model=MODEL, headers=MINE)
    done = ended(port, response_id, headers=MINE)
    if done.json["status"] == "failed":
        assert OUTPUT not in json.dumps(done.json["error"])
    chat(port, PROMPT, model=MODEL, headers=MINE)
    get(port, CHAT, MINE)


def test_of_errors(node, served):
    port = served.port
    answers(node)
    made = respond(port, PROMPT, model=MODEL, headers=MINE).json["id"]
    quiet(
        retrieve(port, made, headers=THEIRS),
        respond(port, PROMPT, model=MODEL, headers=THEIRS, previous_response_id=made),
        respond(port, PROMPT, model=MODEL, headers=MINE, previous_response_id=7),
        respond(port, PROMPT, model=MODEL, headers=MINE, background=True, store=False),
        get(port, f"{RESPONSES}/{made}/input_items?after={PROMPT}x", THEIRS),
        cancel(port, made, headers=MINE),
    )


def test_of_a_provider_that_fails(node, served):
    node.behave(fail_status=500, fail_body=json.dumps({"error": {"message": f"{PROMPT} {OUTPUT}"}}))
    try:
        done = ended(served.port, begun(served.port, PROMPT, model=MODEL, headers=MINE), headers=MINE)
    finally:
        node.behave(fail_status=0, fail_body="")
    # Only the client itself gets the text of its node.
    assert done.json["status"] == "failed"
    quiet(retrieve(served.port, done.json["id"], headers=THEIRS))
