"""``python -m bench.growth``: CPU time of work on a client's or a provider's bytes, and how it grows with their length.

Eight times the bytes take eight times as long where the work is linear, and up to 64 times where it is not. Tests count the
executed lines of the same calls; copies and searches inside one C call are seen here alone.
"""

import argparse
import gc
import io
import json
import time
from collections.abc import Callable
from functools import partial

from lcp_gateway.adapters.json_bytes import parse_json
from lcp_gateway.adapters.splice import replace_model
from lcp_gateway.adapters.sse import EventReader
from lcp_gateway.node.compute.json_sample import sample_json
from lcp_gateway.responses.documents import chat_document
from lcp_gateway.responses.token_estimate import estimate_input_tokens
from lcp_gateway.telemetry.logs import configure_logging, get_logger
from lcp_gateway.telemetry.metrics import Metrics

_SMALL, _TIMES = 256 * 1024, 8
# Above it, growth is no longer that of linear work with caches that are too small.
_LINEAR_AT_MOST = 2 * _TIMES
_CHUNK = 4096
_CALLS = 2_000
_PEER = "02" + "a" * 64


def _read_events(piece: bytes, chunk: int) -> Callable[[int], Callable[[], object]]:
    def of_size(size: int) -> Callable[[], object]:
        stream = piece * (size // len(piece))
        chunks = [stream[at : at + chunk] for at in range(0, len(stream), chunk)]

        def read() -> None:
            reader = EventReader()
            for each in chunks:
                reader.feed(each)
            reader.rest()

        return read

    return of_size


def _change_model(piece: bytes) -> Callable[[int], Callable[[], object]]:
    def of_size(size: int) -> Callable[[], object]:
        inner = (piece * (size // len(piece)))[:-1]
        return partial(replace_model, b'{"x":[' + inner + b'],"y":{"model":1},"model":"auto"}', "m")

    return of_size


def _estimate(piece: bytes) -> Callable[[int], Callable[[], object]]:
    def of_size(size: int) -> Callable[[], object]:
        return partial(estimate_input_tokens, parse_json(b'{"input":[' + piece * (size // len(piece)) + b"1]}"))

    return of_size


def _join_chunks(size: int) -> Callable[[], object]:
    chunk = {"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "word "}}]}
    event = b"data: " + json.dumps(chunk).encode() + b"\n\n"
    stream = event * (size // len(event))
    blocks = tuple(stream[at : at + 65536] for at in range(0, len(stream), 65536))
    return partial(chat_document, blocks, True)


def _sample(size: int) -> Callable[[], object]:
    names = [str(at) for at in range(size // 64)]
    return partial(
        sample_json, {"type": "object", "properties": {name: {"$ref": "#"} for name in names}, "required": names}
    )


_GROWING: dict[str, Callable[[int], Callable[[], object]]] = {
    **{
        f"events of {piece!r}": _read_events(piece, _CHUNK)
        for piece in (b"\n", b"\r", b":\n\n", b"data:\n", b"data: {}\n\n", b"x", b"event", b"\xff")
    },
    "one event in chunks of 18 bytes": _read_events(b"a few more letters", 18),
    **{
        f"model of a body of {piece!r}": _change_model(piece)
        for piece in (b"[],", b"[[[[]]]],", b'"",', b'{"model":""},', b"[[[[[[[[[[0]]]]]]]]]],", b'"\\\\",')
    },
    **{f"tokens of a list of {piece!r}": _estimate(piece) for piece in (b"1,", b"{},")},
    "a chat's chunks as one document": _join_chunks,
    "a sample for a schema that refers to itself": _sample,
}


def _cpu_s(call: Callable[[], object], repeat: int) -> float:
    best_s = float("inf")
    for _ in range(repeat):
        gc.collect()
        gc.disable()
        begun = time.process_time()
        call()
        best_s = min(best_s, time.process_time() - begun)
        gc.enable()
    return best_s


def _short_calls() -> dict[str, Callable[[], object]]:
    configure_logging("info", "json", stream=io.StringIO())
    log = get_logger("lcp_gateway.http.chat")
    metrics = Metrics()
    metrics.set_known({"echo-1"}, {_PEER})
    return {
        "a line of the log": partial(
            log.info, "request", endpoint="/v1/chat/completions", model="echo-1", peer_id=_PEER, status=200, stream=True
        ),
        "a request counted": partial(metrics.request, "/v1/chat/completions", "echo-1", 200, "settled", True, 0.05),
        "a quote counted": partial(metrics.quote, _PEER, "echo-1", 0.01, 57_000),
    }


def main() -> int:
    """Print the table; the status is 1 where time grows faster than the length."""
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__)
    parser.add_argument("--repeat", type=int, default=5, help="the best of so many counts (default 5)")
    repeat = parser.parse_args().repeat
    worst = 0.0
    print(f"{'work':<46}{'256 KiB':>10}{'2 MiB':>10}{'ratio':>8}")
    for name, of_size in _GROWING.items():
        small_s, large_s = (_cpu_s(of_size(size), repeat) for size in (_SMALL, _TIMES * _SMALL))
        ratio = large_s / small_s
        worst = max(worst, ratio)
        print(f"{name:<46}{small_s * 1e3:>7.1f} ms{large_s * 1e3:>7.1f} ms{ratio:>8.1f}")
    print()
    for name, call in _short_calls().items():
        each_s = _cpu_s(lambda call=call: [call() for _ in range(_CALLS)], repeat) / _CALLS
        print(f"{name:<46}{each_s * 1e6:>7.1f} us")
    return worst > _LINEAR_AT_MOST


if __name__ == "__main__":
    raise SystemExit(main())
