"""Invoices as QR codes, for the camera of a phone's wallet."""

import io
import re
from typing import Any, Final

import segno
from segno import consts

SVG_TYPE: Final = "image/svg+xml"
PNG_TYPE: Final = "image/png"

MAX_INVOICE_CHARS: Final = 2_000
"""Longer ones make codes that no camera reads; an invoice with a hash for its description has about 300."""

_INVOICE = re.compile(r"ln[a-z0-9]+", re.ASCII)
_QUIET_ZONE_MODULES = 4
_PNG_PIXELS = 600


class NotAnInvoice(ValueError):
    """A text that is no payment request, or too long for a camera."""


def svg(payment_request: str) -> bytes:
    """Draw an invoice as SVG that takes the size it is given.

    Raises:
        NotAnInvoice: it is none.
    """
    code = _code(payment_request)
    drawn = io.BytesIO()
    # A white ground of its own: on a page in dark colours a bare code is inverted, and many cameras read none of those.
    code.save(
        drawn, kind="svg", border=_QUIET_ZONE_MODULES, light="white", omitsize=True, xmldecl=False
    )
    return drawn.getvalue()


def png(payment_request: str) -> bytes:
    """Draw an invoice as a PNG of at least 600 pixels a side, each module the same whole number of them.

    Raises:
        NotAnInvoice: it is none.
    """
    code = _code(payment_request)
    modules, _ = code.symbol_size(scale=1, border=_QUIET_ZONE_MODULES)
    drawn = io.BytesIO()
    code.save(drawn, kind="png", scale=-(-_PNG_PIXELS // int(modules)), border=_QUIET_ZONE_MODULES)
    return drawn.getvalue()


def _code(payment_request: str) -> segno.QRCode:
    """Make ``lightning:`` and the invoice in upper case, which is written in 5.5 bits a character and not in 8.

    The lowest level of error correction keeps the modules large, which is what a phone in front of a screen needs;
    where a higher one fits into the same size it is taken.
    """
    text = payment_request.lower()
    if len(text) > MAX_INVOICE_CHARS or not _INVOICE.fullmatch(text):
        raise NotAnInvoice("not a payment request, or one too long to be drawn")
    # Two segments. The library makes them of pairs of text and mode, which its types do not say.
    segments: Any = [("lightning:", consts.MODE_BYTE), (text.upper(), consts.MODE_ALPHANUMERIC)]
    return segno.make_qr(segments, error="l", boost_error=True)
