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
    """A text that is not a payment request, or one too long for a camera."""


def svg(payment_request: str) -> bytes:
    """Draw an invoice as an SVG that scales to its container.

    Raises:
        NotAnInvoice: the text is not one.
    """
    code = _code(payment_request)
    drawn = io.BytesIO()
    # A white background of its own: on a dark page a bare code is inverted, and many cameras do not read that.
    code.save(drawn, kind="svg", border=_QUIET_ZONE_MODULES, light="white", omitsize=True, xmldecl=False)
    return drawn.getvalue()


def png(payment_request: str) -> bytes:
    """Draw an invoice as a PNG of at least 600 pixels a side, each module the same whole number of them.

    Raises:
        NotAnInvoice: the text is not one.
    """
    code = _code(payment_request)
    modules, _ = code.symbol_size(scale=1, border=_QUIET_ZONE_MODULES)
    drawn = io.BytesIO()
    code.save(drawn, kind="png", scale=-(-_PNG_PIXELS // int(modules)), border=_QUIET_ZONE_MODULES)
    return drawn.getvalue()


def _code(payment_request: str) -> segno.QRCode:
    """Encode ``lightning:`` and the invoice in upper case, which takes 5.5 bits a character instead of 8.

    The lowest level of error correction keeps the modules large, as a phone in front of a screen needs them; a higher one
    is taken where it fits into the same size.
    """
    text = payment_request.lower()
    if len(text) > MAX_INVOICE_CHARS or not _INVOICE.fullmatch(text):
        raise NotAnInvoice("not a payment request, or one too long to be drawn")
    # Two segments, as pairs of text and mode, which the library takes although its types do not say so.
    segments: Any = [("lightning:", consts.MODE_BYTE), (text.upper(), consts.MODE_ALPHANUMERIC)]
    return segno.make_qr(segments, error="l", boost_error=True)
