"""Bech32 as invoices use it: fast both ways, checksum included, without BIP 173's limit on length.

Symbols are handled as ``bytes`` whose values are 0 to 31. ``bytes.translate``, ``int`` and the standard library's
base32 do most of the work in C, also for the checksum, except of very long texts.
"""

from base64 import b32encode
from functools import cache
from typing import Final

ALPHABET: Final = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l"
CHECKSUM_SYMBOLS: Final = 6

_INVALID = 0xFF
_BASE32 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_DIGITS = b"0123456789abcdefghijklmnopqrstuv"
_SYMBOLS = bytes(range(32))
# Nearly every invoice is shorter; longer ones are read symbol by symbol.
_MASKED_SYMBOLS = 640
_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)


def _to_symbol_table() -> bytes:
    table = bytearray([_INVALID]) * 256
    for value, letter in enumerate(ALPHABET):
        table[letter] = value
    return bytes(table)


def _one_symbol_remainders() -> tuple[int, ...]:
    """Return, for each value of the five bits that leave the register, the bits to fold back in."""
    remainders = []
    for top in range(32):
        folded = 0
        for bit, polynomial in enumerate(_GENERATOR):
            if top >> bit & 1:
                folded ^= polynomial
        remainders.append(folded)
    return tuple(remainders)


def _two_symbol_remainders() -> tuple[int, ...]:
    """Return the same for two symbols at once, which halves the steps of the loop."""
    single = _one_symbol_remainders()
    remainders = []
    for top in range(1024):
        register = single[top >> 5] ^ ((top & 31) << 25)
        remainders.append(((register & 0x1FFFFFF) << 5) ^ single[register >> 25])
    return tuple(remainders)


_TO_SYMBOL = _to_symbol_table()
_TO_LETTER = bytes.maketrans(_SYMBOLS, ALPHABET)
_TO_DIGIT = bytes.maketrans(_SYMBOLS, _DIGITS)
_HIGH_BITS = bytes(letter >> 5 for letter in range(256))
_LOW_BITS = bytes(letter & 31 for letter in range(256))
_FROM_BASE32 = bytes.maketrans(_BASE32, _SYMBOLS)
_FOLD = _two_symbol_remainders()


@cache
def _masks() -> tuple[int, ...]:
    """Return, for each bit of a remainder, the highest first, the bits of a text of which it is the parity, as one number."""
    single = _one_symbol_remainders()
    registers = [1 << bit for bit in range(5)]
    columns: list[str] = []
    for _ in range(_MASKED_SYMBOLS + 1):
        columns += (f"{register:030b}" for register in registers)
        registers = [(register & 0x1FFFFFF) << 5 ^ single[register >> 25] for register in registers]
    bits = "".join(reversed(columns))
    return tuple(int(bits[number::30], 2) for number in range(30))


def _polymod(symbols: bytes) -> int:
    """Return the remainder of ``symbols`` by the generator, as BIP 173 defines it (the register starts at 1).

    Each bit of it is the parity of some bits of the text: the remainder is linear.
    """
    if len(symbols) > _MASKED_SYMBOLS:
        return _polymod_of_long(symbols)
    # The one before the text is the register's initial value.
    text = int((b"\1" + symbols).translate(_TO_DIGIT), 32)
    remainder = 0
    for mask in _masks():
        remainder = remainder << 1 | (text & mask).bit_count() & 1
    return remainder


def _polymod_of_long(symbols: bytes) -> int:
    """Return the same by long division, two symbols a step."""
    register = 1
    if len(symbols) % 2:
        # A leading zero on an odd count would shift the initial 1; take the first symbol by itself instead.
        register = 32 ^ symbols[0]
        symbols = symbols[1:]
    fold = _FOLD
    for first, second in zip(symbols[::2], symbols[1::2], strict=True):
        register = (register & 0xFFFFF) << 10 ^ first << 5 ^ second ^ fold[register >> 20]
    return register


def _expand(prefix: bytes) -> bytes:
    return prefix.translate(_HIGH_BITS) + b"\0" + prefix.translate(_LOW_BITS)


def split(text: bytes) -> tuple[bytes, bytes]:
    """Take apart a lower-case bech32 text: its human-readable prefix and its symbols, checksum removed.

    Raises:
        ValueError: there is no separator, a letter is not in the alphabet, or the checksum is wrong.
    """
    prefix, separator, data = text.rpartition(b"1")
    if not separator or not prefix:
        raise ValueError("there is no separator")
    symbols = data.translate(_TO_SYMBOL)
    if len(symbols) < CHECKSUM_SYMBOLS or _INVALID in symbols:
        raise ValueError("a character is not in the alphabet")
    if _polymod(_expand(prefix) + symbols) != 1:
        raise ValueError("the checksum is wrong")
    return prefix, symbols[:-CHECKSUM_SYMBOLS]


def join(prefix: bytes, symbols: bytes) -> bytes:
    """Make a bech32 text of a lower-case prefix and symbols; the opposite of ``split``."""
    remainder = _polymod(_expand(prefix) + symbols + bytes(CHECKSUM_SYMBOLS)) ^ 1
    checksum = bytes([remainder >> shift & 31 for shift in range(25, -1, -5)])
    return prefix + b"1" + (symbols + checksum).translate(_TO_LETTER)


def to_int(symbols: bytes) -> int:
    """Read symbols as one big-endian number; none are zero."""
    return int(symbols.translate(_TO_DIGIT), 32) if symbols else 0


def from_int(number: int) -> bytes:
    """Write a number in the fewest symbols; zero is one symbol, since an empty field is easily misread."""
    symbols = [number & 31]
    while number := number >> 5:
        symbols.append(number & 31)
    return bytes(reversed(symbols))


def to_bytes(symbols: bytes) -> bytes:
    """Read symbols as whole bytes; the bits left over must be zero and fewer than five.

    Raises:
        ValueError: there are more bits left over, or one of them is set.
    """
    bits = len(symbols) * 5
    length, spare = bits >> 3, bits & 7
    number = int(symbols.translate(_TO_DIGIT), 32) if symbols else 0
    if spare >= 5 or number & ((1 << spare) - 1):  # noqa: PLR2004 - a symbol has five bits
        raise ValueError("bits are left over")
    return (number >> spare).to_bytes(length, "big")


def from_bytes(data: bytes) -> bytes:
    """Write bytes as symbols, filled up with zero bits; the opposite of ``to_bytes``."""
    return b32encode(data).rstrip(b"=").translate(_FROM_BASE32)


def to_padded_bytes(symbols: bytes) -> bytes:
    """Read symbols as bytes, filling the last one up with zero bits: how an invoice is hashed."""
    length = (len(symbols) * 5 + 7) // 8
    return (to_int(symbols) << (length * 8 - len(symbols) * 5)).to_bytes(length, "big")
