"""Header blocks that are known are not decoded again: the same headers as of a decoder that decodes each."""

import hpack
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from lcp_gateway.upstreams.lcpd.http2_header_blocks import HeaderDecoder

NAMES = (b"grpc-status", b"grpc-message", b"content-type", b"x-trace")
VALUES = (b"", b"0", b"14", b"application/grpc", b"a" * 60, b"b" * 60)
HEADERS = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES), st.booleans()), min_size=1, max_size=4)


def _decoded(decoder, block):
    return tuple((bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True))


class HeaderBlocks(RuleBasedStateMachine):
    """A server encodes blocks, with and without indexing, into a table so small that entries leave it."""

    def __init__(self):
        super().__init__()
        self.encoder = hpack.Encoder()
        self.encoder.header_table_size = 200
        self.plain = hpack.Decoder()
        self.decoder = HeaderDecoder()
        self.sent = []

    def check(self, block):
        try:
            expected = _decoded(self.plain, block)
        except hpack.HPACKError:
            # The numbers of another table, after a repeated block: the connection is over, and a new one begins.
            self.__init__()
            return
        assert self.decoder.decode(block)[0] == expected
        self.sent.append(block)

    @rule(headers=HEADERS, huffman=st.booleans())
    def a_block(self, headers, huffman):
        self.check(self.encoder.encode([(n, v, s) for n, v, s in headers], huffman=huffman))

    @rule(size=st.sampled_from((0, 60, 200, 400)))
    def the_table_changes_its_size(self, size):
        self.encoder.header_table_size = size

    @rule(number=st.integers(0, 1_000))
    def an_earlier_block_again(self, number):
        """Not what an encoder does: its numbers may mean other entries now, or none."""
        if self.sent:
            self.check(self.sent[number % len(self.sent)])


TestHeaderBlocks = HeaderBlocks.TestCase


def test_a_block_that_changes_no_table_is_decoded_once(monkeypatch):
    decoder, encoder = HeaderDecoder(), hpack.Encoder()
    head = encoder.encode([(b":status", b"200"), (b"content-type", b"application/grpc")])
    again = encoder.encode([(b":status", b"200"), (b"content-type", b"application/grpc")])
    first = decoder.decode(head)
    assert decoder.decode(again) == first
    monkeypatch.setattr(decoder._decoder, "decode", None)
    assert decoder.decode(again) == first


@given(st.lists(st.binary(min_size=1, max_size=6), min_size=1, max_size=8))
def test_any_bytes_give_what_a_decoder_gives(blocks):
    decoder, plain = HeaderDecoder(), hpack.Decoder(max_header_list_size=64 * 1024)
    for block in blocks:
        try:
            expected = _decoded(plain, block)
        except hpack.HPACKError:
            return
        assert decoder.decode(block)[0] == expected
