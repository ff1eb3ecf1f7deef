import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.lightning import bech32

SYMBOLS = st.lists(st.integers(0, 31), max_size=200).map(bytes)


@pytest.mark.parametrize(
    "text",
    [
        b"a12uel5l",
        b"an83characterlonghumanreadablepartthatcontainsthenumber1andtheexcludedcharactersbio1tt5tgs",
        b"abcdef1qpzry9x8gf2tvdw0s3jn54khce6mua7lmqqqxw",
        b"split1checkupstagehandshakeupstreamerranterredcaperred2y9e3w",
        b"?1ezyfcl",
    ],
)
def test_the_valid_examples_of_bip_173_are_read_and_written_back(text):
    assert bech32.join(*bech32.split(text)) == text


@given(SYMBOLS)
def test_symbols_survive_a_round_trip(symbols):
    assert bech32.split(bech32.join(b"ln", symbols)) == (b"ln", symbols)


@given(st.binary(max_size=100))
def test_bytes_survive_a_round_trip(data):
    assert bech32.to_bytes(bech32.from_bytes(data)) == data


@given(st.integers(0, 1 << 64))
def test_numbers_survive_a_round_trip_in_the_fewest_symbols(number):
    symbols = bech32.from_int(number)

    assert bech32.to_int(symbols) == number
    assert number == 0 or symbols[0] != 0


@pytest.mark.parametrize("symbols", [b"\x00", b"\x00\x01", b"\x1f" * 3])
def test_left_over_bits_are_refused(symbols):
    with pytest.raises(ValueError, match="left over"):
        bech32.to_bytes(symbols)


@given(st.binary(max_size=700).map(lambda data: bytes(byte & 31 for byte in data)))
def test_the_checksum_is_that_of_long_division_for_short_and_for_long_texts(symbols):
    register = 1
    for symbol in symbols:
        top, register = register >> 25, (register & 0x1FFFFFF) << 5 ^ symbol
        for bit, polynomial in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            if top >> bit & 1:
                register ^= polynomial
    assert bech32._polymod(symbols) == register
