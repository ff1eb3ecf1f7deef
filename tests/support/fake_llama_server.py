"""A stand-in for ``llama-server`` with its flags, /health and /v1 routes: one thread a request, started by its path.

The model's file is JSON that says how it behaves: ``load_s``, ``fails``, ``tokens``, ``pause_s``, ``deaf`` (to SIGTERM).
"""

import argparse
import json
import signal
import stat
import sys
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def installed(folder: Path) -> Path:
    """Return an executable of that name which runs this file."""
    path = folder / "llama-server"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def model_file(folder: Path, name: str, **behaviour: object) -> Path:
    """Write the file of a model that behaves so."""
    path = folder / f"{name}.gguf"
    path.write_text(json.dumps(behaviour))
    return path


class Handler(BaseHTTPRequestHandler):
    behaviour: Mapping[str, Any] = {}
    alias = ""
    key = ""
    ready_at = 0.0
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        ready = time.monotonic() >= self.ready_at
        self._answer(200 if ready else 503, {"status": "ok" if ready else "loading model"})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.headers["authorization"] != f"Bearer {self.key}":
            self._answer(401, {"error": {"message": "invalid key"}})
        elif self.path == "/v1/embeddings":
            vector = {"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}
            usage = {"prompt_tokens": 1, "total_tokens": 1}
            self._answer(200, {"object": "list", "model": self.alias, "data": [vector], "usage": usage})
        elif asked.get("stream"):
            self._stream()
        else:
            text = " ".join(["word"] * self.behaviour.get("tokens", 3))
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
            usage = {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
            self._answer(
                200,
                {
                    "id": "c",
                    "object": "chat.completion",
                    "created": 1,
                    "model": self.alias,
                    "choices": [choice],
                    "usage": usage,
                },
            )

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for number in range(self.behaviour.get("tokens", 3)):
            choice = {"index": 0, "delta": {"content": f"{number} "}}
            self._chunk(b"data: " + json.dumps({"object": "chat.completion.chunk", "choices": [choice]}).encode())
            time.sleep(self.behaviour.get("pause_s", 0.0))
        end = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        self._chunk(b"data: " + json.dumps(end).encode())
        self._chunk(b"data: [DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, line: bytes) -> None:
        data = line + b"\n\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _answer(self, status: int, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Serve as the flags and the model's file say."""
    parser = argparse.ArgumentParser()
    for flag in ("--model", "-hf", "--host", "--port", "--alias", "--api-key-file", "--ctx-size", "--pooling"):
        parser.add_argument(flag, default="")
    parser.add_argument("--embeddings", action="store_true")
    given = parser.parse_args()
    behaviour = json.loads(Path(given.model).read_text()) if given.model else {}
    if behaviour.get("deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if behaviour.get("fails"):
        sys.exit("error: no such tensor")

    class Model(Handler):
        alias = given.alias
        key = Path(given.api_key_file).read_text().strip()

    Model.behaviour, Model.ready_at = behaviour, time.monotonic() + behaviour.get("load_s", 0.0)
    server = ThreadingHTTPServer((given.host, int(given.port)), Model)
    if not behaviour.get("deaf"):
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.daemon_threads = True
    server.block_on_close = False
    server.serve_forever(poll_interval=0.05)


if __name__ == "__main__":
    main()
