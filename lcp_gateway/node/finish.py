"""The end of an answer: what its hash and length are said to be, and how it went."""

from __future__ import annotations  # the stub's type of a status does not exist at run time

from dataclasses import dataclass

from lcp_gateway._gen.lcpd import lcpd_pb2


@dataclass(frozen=True, slots=True)
class Finish:
    """How an answer ended. ``sent`` is false when the caller never hears of it: the call just ends."""

    content_type: str
    content_encoding: str
    sha256: bytes
    length: int
    status: lcpd_pb2.Result.Status.ValueType = lcpd_pb2.Result.STATUS_OK
    message: str = ""
    sent: bool = True
