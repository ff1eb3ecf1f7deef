"""A gRPC server between a client and another: calls pass through as bytes, but for those that a test keeps back."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc


class Relay(grpc.GenericRpcHandler):
    """Passes calls with one answer on to ``target``. While ``keeps`` is a method's name, its calls wait here for ever."""

    def __init__(self, target: str) -> None:
        self.address = ""
        self.keeps = ""
        self.kept = threading.Event()
        self._closed = threading.Event()
        self._channel = grpc.insecure_channel(target)

    def service(self, handler_call_details):
        path = handler_call_details.method
        call = self._channel.unary_unary(path)

        def answer(request, context):
            if path.rpartition("/")[2] == self.keeps:
                self.kept.set()
                self._closed.wait(300)
                context.abort(grpc.StatusCode.UNAVAILABLE, "kept back")
            try:
                metadata = [(key, value) for key, value in context.invocation_metadata() if key != "user-agent"]
                return call(request, timeout=context.time_remaining(), metadata=metadata)
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())

        return grpc.unary_unary_rpc_method_handler(answer)

    @contextmanager
    def running(self) -> Iterator["Relay"]:
        server = grpc.server(ThreadPoolExecutor(8), handlers=(self,))
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield self
        finally:
            self._closed.set()
            server.stop(0).wait(60)
            self._channel.close()
