"""Errors of the calls of the simulated lnd: a gRPC status and lnd's text."""

import grpc


class CallError(Exception):
    """Ends a call with a status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


def not_found(message: str) -> CallError:
    """Return the error of a payment or an invoice that is not known."""
    return CallError(grpc.StatusCode.NOT_FOUND, message)
