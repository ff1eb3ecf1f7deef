import io
import struct
import xml.etree.ElementTree as ET
import zlib

import pytest
from coincurve import PrivateKey

from lcp_gateway.accounts import qr
from lcp_gateway.lightning.bolt11 import encode

INVOICE = encode(
    PrivateKey(b"\x01" * 32),
    network="bcrt",
    timestamp=1_700_000_000,
    payment_hash=b"\x02" * 32,
    payment_secret=b"\x03" * 32,
    amount_msat=50_000_000,
    description="top-up",
)


def modules_of(png: bytes, count: int) -> list[list[bool]]:
    """Read the modules, so many a side, from a PNG of one bit per pixel, without the quiet zone."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    at, data, side = 8, b"", 0
    while at < len(png):
        (length,), kind = struct.unpack(">I", png[at : at + 4]), png[at + 4 : at + 8]
        body = png[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            side, height, depth, colour = struct.unpack(">IIBB", body[:10])
            assert (height, depth, colour) == (side, 1, 0)
        elif kind == b"IDAT":
            data += body
        at += 12 + length
    raw, stride = zlib.decompress(data), (side + 7) // 8
    rows, above = [], bytes(stride)
    for start in range(0, len(raw), stride + 1):
        # Only two PNG filters are used: none, and the difference from the line above.
        assert raw[start] in {0, 2}
        line = raw[start + 1 : start + 1 + stride]
        if raw[start] == 2:
            line = bytes((a + b) % 256 for a, b in zip(line, above, strict=True))
        above = line
        rows.append([not line[x // 8] >> (7 - x % 8) & 1 for x in range(side)])
    size, rest = divmod(side, count + 8)
    assert not rest
    places = [(4 + n) * size for n in range(count)]
    return [[rows[y][x] for x in places] for y in places]


def test_the_svg_scales_and_has_a_white_ground():
    root = ET.fromstring(qr.svg(INVOICE))

    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "viewBox" in root.attrib and "width" not in root.attrib
    assert b"#fff" in qr.svg(INVOICE)
    assert qr.SVG_TYPE == "image/svg+xml"


def test_the_png_holds_the_same_code_large_enough_for_a_camera():
    code = qr._code(INVOICE)
    drawn = qr.png(INVOICE)

    assert modules_of(drawn, len(code.matrix)) == [[bool(module) for module in row] for row in code.matrix]
    (width,) = struct.unpack(">I", drawn[16:20])
    assert 600 <= width <= 1_000
    assert qr.PNG_TYPE == "image/png"


def test_upper_case_makes_a_smaller_code_than_the_invoice_as_it_is():
    import segno

    assert int(qr._code(INVOICE).version) < int(segno.make_qr("lightning:" + INVOICE).version)


def test_an_invoice_in_upper_case_is_the_same():
    assert qr.svg(INVOICE.upper()) == qr.svg(INVOICE)


@pytest.mark.parametrize(
    "text", ["", "ln", "lnbc1\n", "lnbc 1", "<svg>", "bc1qxyz", "lnbcé", "ln" + "q" * 2_000, "\u017fn" * 9]
)
def test_a_text_that_is_no_invoice_gets_no_qr_code(text):
    for draw in (qr.svg, qr.png):
        with pytest.raises(qr.NotAnInvoice) as refused:
            draw(text)
        assert "bc1qxyz" not in str(refused.value)


def test_the_longest_that_is_let_through_can_be_drawn():
    assert io.BytesIO(qr.png("ln" + "q" * (qr.MAX_INVOICE_CHARS - 2))).read(4) == b"\x89PNG"
