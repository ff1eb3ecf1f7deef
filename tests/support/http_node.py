"""A stand-in for an OpenAI-compatible HTTP server: in a thread of a test, or as a process of its own.

``python -m tests.support.http_node --port 0 --name NAME`` prints ``listening PORT`` once it answers. Its answers
begin with its name, so that a test sees which node answered. ``GET /_requests`` returns the received requests, ``POST
/_behave`` changes its behaviour while it runs.
"""

import argparse
import asyncio
import base64
import hashlib
import json
import os
import re
import struct
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields

from aiohttp import HttpVersion10, web

from tests.support.ports import free_port

_PIECE_BYTES = 64 * 1024
_DIMENSIONS = 8
_CALLS = {"/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/embeddings"}


@dataclass
class Behaviour:
    """Settings of its answers.

    ``cut`` is ``before_head``, ``mid_stream`` or ``no_done``. ``die_after_chunks`` ends the whole process, or in a
    thread the connection, after so many pieces of a stream. ``raw`` is an answer's whole body, as base64 over HTTP.
    No call is answered before ``together`` were under way at one time; a stream that is ``held`` stops after its first piece.
    ``models_status`` and ``models_raw`` are for /v1/models.
    """

    delay_s: float = 0.0
    together: int = 0
    token_delay_s: float = 0.0
    held: bool = False
    fail_status: int = 0
    fail_body: str = ""
    die_after_chunks: int | None = None
    cut: str = ""
    redirect: str = ""
    close_delimited: bool = False
    raw: bytes | None = None
    content_type: str = ""
    content_encoding: str = ""
    models_status: int = 200
    models_raw: str | None = None
    usage: bool = True


@dataclass
class Seen:
    """One request: ``body`` has exactly the received bytes."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = field(repr=False)


class StandIn:
    """The server itself. ``is_process`` lets it end the process that it runs in."""

    def __init__(
        self,
        name: str,
        models: tuple[str, ...] = (),
        *,
        style: str = "plain",
        api_key: str = "",
        cold_s: float = 0.0,
        behaviour: Behaviour | None = None,
        is_process: bool = False,
    ) -> None:
        self.name = name
        self.style = style
        self.models = models or (("llama3.2:latest",) if style == "ollama" else ("m",))
        self.api_key = api_key
        self.cold_s = cold_s
        self.behaviour = behaviour or Behaviour()
        self.requests: list[Seen] = []
        self.written_bytes = 0
        self.under_way = 0
        self.most_under_way = 0
        self.gone = 0
        self._is_process = is_process
        self._warm: set[str] = set()

    @property
    def is_ollama(self) -> bool:
        return self.style == "ollama"

    def calls(self) -> list[Seen]:
        """The requests for inference, without those for the list of models."""
        return [seen for seen in list(self.requests) if seen.path in _CALLS]

    def application(self) -> web.Application:
        app = web.Application(client_max_size=256 * 1024 * 1024)
        app.add_routes(
            [
                web.get("/_requests", self._list_requests),
                web.post("/_behave", self._behave),
                web.get("/v1/models", self._list),
                web.post("/v1/chat/completions", self._serve(self._chat)),
                web.post("/v1/responses", self._serve(self._responses)),
                web.post("/v1/completions", self._serve(self._completions)),
                web.post("/v1/embeddings", self._serve(self._embeddings)),
            ]
        )
        return app

    # Requests of tests.

    async def _list_requests(self, _request):
        reported = [{**asdict(s), "body": base64.b64encode(s.body).decode()} for s in self.requests]
        return web.json_response(reported)

    async def _behave(self, request):
        self.change(**await request.json())
        return web.json_response({})

    def change(self, **changes) -> None:
        known = {f.name for f in fields(Behaviour)}
        for name, value in changes.items():
            assert name in known, f"no such behaviour: {name}"
            is_text = name == "raw" and isinstance(value, str)
            setattr(self.behaviour, name, base64.b64decode(value) if is_text else value)

    # Requests of clients.

    async def _list(self, request):
        self.requests.append(Seen("GET", request.path, dict(request.headers), b""))
        b = self.behaviour
        if refused := self._refused(request):
            return refused
        if b.redirect:
            return web.Response(status=307, headers={"Location": b.redirect})
        if b.models_status != 200:
            return web.Response(status=b.models_status, text=b.fail_body)
        if b.models_raw is not None:
            return web.Response(text=b.models_raw, content_type="application/json")
        owner = "library" if self.is_ollama else self.name
        listed = [{"id": m, "object": "model", "created": int(time.time()), "owned_by": owner} for m in self.models]
        return web.json_response({"object": "list", "data": listed})

    def _serve(self, answer):
        async def handler(request):
            body = await request.read()
            self.requests.append(Seen("POST", request.path, dict(request.headers), body))
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
            try:
                while self.most_under_way < self.behaviour.together:
                    await asyncio.sleep(0.001)
                return await self._answer(request, body, answer)
            except (ConnectionError, asyncio.CancelledError):
                self.gone += 1
                raise
            finally:
                self.under_way -= 1

        return handler

    async def _answer(self, request, body, answer):
        b = self.behaviour
        if refused := self._refused(request):
            return refused
        if b.redirect:
            return web.Response(status=307, headers={"Location": b.redirect})
        if b.fail_status:
            return web.Response(status=b.fail_status, text=b.fail_body, content_type="application/json")
        if b.cut == "before_head":
            request.transport.abort()
            return web.Response()
        await asyncio.sleep(b.delay_s)
        if b.raw is not None:
            pieces = [b.raw[at : at + _PIECE_BYTES] for at in range(0, len(b.raw), _PIECE_BYTES)]
            return await self._stream(request, b.content_type or "application/json", pieces, content_length=len(b.raw))
        asked = json.loads(body)
        model = asked.get("model", "")
        if not self._has(model):
            return self._no_model(model)
        if model not in self._warm:
            self._warm.add(model)
            await asyncio.sleep(self.cold_s)
        document, events = answer(asked)
        if asked.get("stream") and events:
            if b.cut == "no_done":
                events = events[:-1]
            return await self._stream(request, "text/event-stream", events)
        text = json.dumps(document).encode()
        half = len(text) // 2
        return await self._stream(request, "application/json", [text[:half], text[half:]], content_length=len(text))

    async def _stream(self, request, content_type, pieces, *, content_length=None):
        b = self.behaviour
        headers = {"Content-Type": b.content_type or content_type}
        if b.content_encoding:
            headers["Content-Encoding"] = b.content_encoding
        response = web.StreamResponse(headers=headers)
        if b.close_delimited:
            # As an old server: neither a length nor chunks, the body ends with the connection.
            request._version = HttpVersion10
            response.force_close()
        elif content_length is not None and not content_type.startswith("text/event-stream"):
            response.content_length = content_length
        await response.prepare(request)
        for number, piece in enumerate(pieces):
            if b.die_after_chunks is not None and number >= b.die_after_chunks:
                if self._is_process:
                    os._exit(9)
                request.transport.abort()
                return response
            if b.cut == "mid_stream" and number >= (len(pieces) + 1) // 2:
                request.transport.close()
                return response
            await response.write(piece)
            self.written_bytes += len(piece)
            while b.held:
                await asyncio.sleep(0.001)
            if b.token_delay_s:
                await asyncio.sleep(b.token_delay_s)
        await response.write_eof()
        return response

    def _refused(self, request):
        if self.api_key and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            said = request.headers.get("Authorization", "")
            return _error(401, f"Incorrect API key provided: {said}", "invalid_api_key")
        return None

    def _has(self, model: str) -> bool:
        return model in self.models or (self.is_ollama and f"{model}:latest" in self.models)

    def _no_model(self, model: str):
        if self.is_ollama:
            message = f'model "{model}" not found, try pulling it first'
            return _error(404, message, None, kind="api_error")
        return _error(404, f"The model `{model}` does not exist", "model_not_found")

    # Answers: whole documents, and the events of a stream.

    def _chat(self, asked):
        text = self._says(_last_text(asked.get("messages", [])))
        if (asked.get("response_format") or {}).get("type") == "json_schema":
            schema = asked["response_format"]["json_schema"]["schema"]
            text = json.dumps(_instance(schema, self.name))
        base = {
            "id": _id("chatcmpl", asked),
            "created": int(time.time()),
            "model": asked["model"],
            "system_fingerprint": f"fp_{self.name}",
        }
        usage = _usage("prompt_tokens", "completion_tokens", asked, text)
        call = self._tool_call(asked) if asked.get("tools") else None
        message = {"role": "assistant", "content": None if call else text}
        finish = "stop"
        deltas = [{"role": "assistant", "content": ""}]
        if call:
            function = {"name": call[0], "arguments": call[1]}
            one = {"id": "call_1", "type": "function", "function": function}
            message["tool_calls"] = [one]
            finish = "tool_calls"
            deltas.append({"tool_calls": [{"index": 0, **one}]})
        else:
            deltas += [{"content": token} for token in _tokens(text)]
        count = asked.get("n") or 1
        choices = [{"index": i, "message": message, "logprobs": None, "finish_reason": finish} for i in range(count)]
        document = {**base, "object": "chat.completion", "choices": choices}
        chunk = {**base, "object": "chat.completion.chunk"}
        steps = [(delta, None) for delta in deltas]
        # Ollama's last chunk has an empty content beside its reason.
        steps.append(({"content": ""} if self.is_ollama else {}, finish))
        events = [
            {**chunk, "choices": [{"index": i, "delta": delta, "finish_reason": reason}]}
            for delta, reason in steps
            for i in range(count)
        ]
        return self._with_usage(asked, document, events, chunk, usage)

    def _completions(self, asked):
        prompt = asked.get("prompt", "")
        is_several = isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list)
        prompts = prompt if is_several else [prompt]
        base = {
            "id": _id("cmpl", asked),
            "object": "text_completion",
            "created": int(time.time()),
            "model": asked["model"],
        }
        texts = [
            (one if asked.get("echo") and isinstance(one, str) else "") + self._says(str(one))
            for one in prompts
            for _ in range(asked.get("n") or 1)
        ]
        usage = _usage("prompt_tokens", "completion_tokens", asked, " ".join(texts))
        choices = [
            {"index": i, "text": text, "logprobs": None, "finish_reason": "stop"} for i, text in enumerate(texts)
        ]
        events = [
            {**base, "choices": [{"index": i, "text": t, "logprobs": None, "finish_reason": None}]}
            for i, text in enumerate(texts)
            for t in _tokens(text)
        ]
        events += [{**base, "choices": [{**choice, "text": ""}]} for choice in choices]
        return self._with_usage(asked, {**base, "choices": choices}, events, base, usage)

    def _with_usage(self, asked, document, events, chunk, usage):
        if self.behaviour.usage:
            document["usage"] = usage
            if (asked.get("stream_options") or {}).get("include_usage"):
                events.append({**chunk, "choices": [], "usage": usage})
        lines = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]
        return document, [*lines, b"data: [DONE]\n\n"]

    def _responses(self, asked):
        given = asked.get("input", "")
        text = self._says(given if isinstance(given, str) else _last_text(given))
        form = (asked.get("text") or {}).get("format") or {}
        if form.get("type") == "json_schema":
            text = json.dumps(_instance(form["schema"], self.name))
        base = {
            "id": _id("resp", asked),
            "object": "response",
            "created_at": int(time.time()),
            "model": asked["model"],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": asked.get("tools") or [],
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
        }
        usage = _usage("input_tokens", "output_tokens", asked, text)
        usage["input_tokens_details"] = {"cached_tokens": 0}
        usage["output_tokens_details"] = {"reasoning_tokens": 0}
        call = self._tool_call(asked) if asked.get("tools") else None
        item = _call_item(*call) if call else _message_item(text)
        document = {**base, "status": "completed", "output": [item], "usage": usage}
        begun = {**base, "status": "in_progress", "output": [], "usage": None}
        place = {"output_index": 0, "item_id": item["id"]}
        events = [
            ("response.created", {"response": begun}),
            ("response.in_progress", {"response": begun}),
            ("response.output_item.added", {"output_index": 0, "item": _begun(item)}),
        ]
        if call:
            kind = "response.function_call_arguments"
            events.append((f"{kind}.delta", {**place, "delta": call[1]}))
            events.append((f"{kind}.done", {**place, "name": call[0], "arguments": call[1]}))
        else:
            place["content_index"] = 0
            part = {"type": "output_text", "text": "", "annotations": []}
            whole = {**part, "text": text}
            events.append(("response.content_part.added", {**place, "part": part}))
            events += [
                ("response.output_text.delta", {**place, "delta": token, "logprobs": []}) for token in _tokens(text)
            ]
            events.append(("response.output_text.done", {**place, "text": text, "logprobs": []}))
            events.append(("response.content_part.done", {**place, "part": whole}))
        events.append(("response.output_item.done", {"output_index": 0, "item": item}))
        events.append(("response.completed", {"response": document}))
        lines = [
            f"event: {kind}\ndata: ".encode()
            + json.dumps({"type": kind, "sequence_number": i, **rest}).encode()
            + b"\n\n"
            for i, (kind, rest) in enumerate(events)
        ]
        return document, lines

    def _embeddings(self, asked):
        given = asked.get("input", "")
        is_several = isinstance(given, list) and given and isinstance(given[0], str | list)
        inputs = given if is_several else [given]
        size = asked.get("dimensions") or _DIMENSIONS
        as_base64 = asked.get("encoding_format") == "base64" and not self.is_ollama
        rows = []
        for index, one in enumerate(inputs):
            vector = vector_of(json.dumps(one), size)
            packed = base64.b64encode(struct.pack(f"<{size}f", *vector)).decode()
            rows.append({"object": "embedding", "index": index, "embedding": packed if as_base64 else vector})
        tokens = max(len(json.dumps(given)) // 4, 1)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        document = {"object": "list", "data": rows, "model": asked["model"], "usage": usage}
        return document, []

    def _tool_call(self, asked):
        """Return the name and the arguments of a call to the first tool; None once a tool has answered."""
        turns = asked.get("messages") or asked.get("input") or []
        last = turns[-1] if isinstance(turns, list) and turns else {}
        if last.get("role") == "tool" or last.get("type") == "function_call_output":
            return None
        tool = asked["tools"][0]
        function = tool.get("function", tool)
        schema = function.get("parameters") or {}
        return function["name"], json.dumps(_instance(schema, self.name))

    def _says(self, text: str) -> str:
        return f"{self.name} says: {text}"


def vector_of(text: str, size: int) -> list[float]:
    """Return a text's vector: numbers that single precision holds exactly."""
    seed = hashlib.sha256(text.encode()).digest()
    return [(seed[i % len(seed)] - 128) / 128 for i in range(size)]


def _error(status, message, code, kind="invalid_request_error"):
    error = {"message": message, "type": kind, "param": None, "code": code}
    return web.json_response({"error": error}, status=status)


def _id(prefix: str, asked) -> str:
    return f"{prefix}-{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:24]}"


def _usage(word_in: str, word_out: str, asked, text: str) -> dict:
    tokens_in, tokens_out = max(len(json.dumps(asked)) // 4, 1), len(_tokens(text))
    return {word_in: tokens_in, word_out: tokens_out, "total_tokens": tokens_in + tokens_out}


def _tokens(text: str) -> list[str]:
    return re.findall(r"\s*\S+|\s+", text)


def _last_text(turns) -> str:
    """Return the text of the last turn that a user, or a tool, wrote."""
    for turn in reversed(turns):
        if turn.get("role") == "assistant":
            continue
        content = turn.get("content", turn.get("output", ""))
        if isinstance(content, str):
            return content
        return " ".join(part["text"] for part in content if isinstance(part.get("text"), str))
    return ""


def _instance(schema, name: str):
    """Return an instance that a JSON schema allows."""
    if schema.get("enum"):
        return schema["enum"][0]
    match schema.get("type"):
        case "object" | None:
            return {key: _instance(s, name) for key, s in (schema.get("properties") or {}).items()}
        case "array":
            return [_instance(schema.get("items") or {"type": "string"}, name)]
        case "integer" | "number":
            return 1
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return name


def _message_item(text: str) -> dict:
    part = {"type": "output_text", "text": text, "annotations": []}
    return {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}


def _call_item(name: str, arguments: str) -> dict:
    return {
        "id": "fc_1",
        "type": "function_call",
        "call_id": "call_1",
        "name": name,
        "arguments": arguments,
        "status": "completed",
    }


def _begun(item: dict) -> dict:
    empty = {"content": []} if item["type"] == "message" else {"arguments": ""}
    return {**item, **empty, "status": "in_progress"}


class HttpNodeThread:
    """Runs a stand-in in a thread of the test; it can be stopped and started again at the same port."""

    def __init__(self, name: str = "node", models: tuple[str, ...] = (), **options) -> None:
        self.server = StandIn(name, models, **options)
        self.port = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._runner: web.AppRunner | None = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def requests(self) -> list[Seen]:
        return self.server.requests

    def calls(self) -> list[Seen]:
        return self.server.calls()

    def behave(self, **changes) -> None:
        """Change its behaviour, beginning with the next request."""
        self.server.change(**changes)

    def start(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="http-node", daemon=True)
        self._thread.start()
        # One that the kernel chose it would lend to another program while this is stopped.
        self.port = self.port or free_port()
        self._runner, _ = self._run(serve(self.server, self.port))

    def stop(self) -> None:
        """Close its port and every connection at once, as a process that is killed does."""
        if self._loop is None:
            return
        self._run(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()
        self._loop = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_error) -> None:
        self.stop()

    def _run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)


@contextmanager
def http_nodes(*nodes: HttpNodeThread):
    """Run several for the block."""
    try:
        for node in nodes:
            node.start()
        yield nodes
    finally:
        for node in nodes:
            node.stop()


async def serve(server: StandIn, port: int) -> tuple[web.AppRunner, int]:
    """Listen on the loopback; return the port where 0 was asked for."""
    runner = web.AppRunner(server.application(), handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    return runner, runner.addresses[0][1]


async def _main(arguments: argparse.Namespace) -> None:
    behaviour = Behaviour(delay_s=arguments.delay_s, token_delay_s=arguments.token_delay_s)
    server = StandIn(
        arguments.name,
        tuple(filter(None, arguments.models.split(","))),
        style=arguments.style,
        api_key=arguments.api_key,
        cold_s=arguments.cold_s,
        behaviour=behaviour,
        is_process=True,
    )
    _, port = await serve(server, arguments.port)
    print(f"listening {port}", flush=True)
    await asyncio.Event().wait()


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--name", required=True)
    parser.add_argument("--delay-s", type=float, default=0.0)
    parser.add_argument("--token-delay-s", type=float, default=0.0)
    parser.add_argument("--cold-s", type=float, default=0.0)
    parser.add_argument("--style", choices=["plain", "ollama"], default="plain")
    parser.add_argument("--models", default="")
    parser.add_argument("--api-key", default="")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        asyncio.run(_main(_parse(sys.argv[1:])))
    except KeyboardInterrupt:
        sys.exit(0)
