import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.encryption import DecryptionFailed, Encryption

SECRET = b"a secret of this deployment"
ENCRYPTION = Encryption(SECRET)


@given(st.binary(max_size=200), st.binary(min_size=1, max_size=40), st.binary(max_size=40))
def test_a_ciphertext_decrypts_for_its_name_and_context_and_for_no_other(content, name, context):
    ciphertext = ENCRYPTION.encrypt(name, content, context)
    assert Encryption(SECRET).decrypt(name, ciphertext, context) == content
    for wrong in (
        lambda: ENCRYPTION.decrypt(name + b"x", ciphertext, context),
        lambda: ENCRYPTION.decrypt(name, ciphertext, context + b"x"),
        lambda: ENCRYPTION.decrypt(name, ciphertext[:-1], context),
        lambda: ENCRYPTION.decrypt(name, ciphertext[:-1] + bytes([ciphertext[-1] ^ 1]), context),
        lambda: ENCRYPTION.decrypt(name, b"", context),
        lambda: Encryption(SECRET + b"x").decrypt(name, ciphertext, context),
    ):
        with pytest.raises(DecryptionFailed):
            wrong()


def test_a_ciphertext_shows_nothing_of_its_content_and_is_never_the_same_twice():
    content = b"what was said " * 10
    one, other = (ENCRYPTION.encrypt(b"name", content, b"") for _ in range(2))
    assert one != other
    assert b"said" not in one + other


@given(st.lists(st.binary(max_size=8), max_size=4), st.lists(st.binary(max_size=8), max_size=4))
def test_names_are_the_same_for_the_same_parts_only(one, other):
    assert (ENCRYPTION.keyed_name(*one) == ENCRYPTION.keyed_name(*other)) == (one == other)


def test_names_are_those_of_the_secret():
    assert ENCRYPTION.keyed_name(b"key", b"k") == Encryption(SECRET).keyed_name(b"key", b"k")
    assert ENCRYPTION.keyed_name(b"key", b"k") != Encryption(SECRET + b"x").keyed_name(b"key", b"k")


def test_a_secret_that_can_be_guessed_is_refused():
    with pytest.raises(ValueError, match="16 bytes"):
        Encryption(b"short")


def test_keys_are_those_of_hkdf():
    """What a gateway of an earlier release wrote can be read."""
    secret = b"a secret of some length"
    expected = HKDF(SHA256(), 32, salt=None, info=b"lcp-gateway names").derive(secret)
    assert Encryption(secret)._name_key == expected
