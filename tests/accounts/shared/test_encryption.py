import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.accounts.shared.encryption import DecryptionFailed, Seals

SECRET = b"a secret of this deployment"
SEALS = Seals(SECRET)


@given(st.binary(max_size=200), st.binary(min_size=1, max_size=40), st.binary(max_size=40))
def test_what_is_sealed_opens_for_the_same_name_and_owner_and_for_no_other(content, name, owner):
    sealed = SEALS.close(name, content, owner)
    assert Seals(SECRET).open(name, sealed, owner) == content
    for wrong in (
        lambda: SEALS.open(name + b"x", sealed, owner),
        lambda: SEALS.open(name, sealed, owner + b"x"),
        lambda: SEALS.open(name, sealed[:-1], owner),
        lambda: SEALS.open(name, sealed[:-1] + bytes([sealed[-1] ^ 1]), owner),
        lambda: SEALS.open(name, b"", owner),
        lambda: Seals(SECRET + b"x").open(name, sealed, owner),
    ):
        with pytest.raises(DecryptionFailed):
            wrong()


def test_a_seal_shows_nothing_of_its_content_and_is_never_the_same_twice():
    content = b"what was said " * 10
    one, other = (SEALS.close(b"name", content, b"") for _ in range(2))
    assert one != other
    assert b"said" not in one + other


@given(st.lists(st.binary(max_size=8), max_size=4), st.lists(st.binary(max_size=8), max_size=4))
def test_names_are_the_same_for_the_same_parts_only(one, other):
    assert (SEALS.name(*one) == SEALS.name(*other)) == (one == other)


def test_names_are_those_of_the_secret():
    assert SEALS.name(b"key", b"k") == Seals(SECRET).name(b"key", b"k")
    assert SEALS.name(b"key", b"k") != Seals(SECRET + b"x").name(b"key", b"k")


def test_a_secret_that_can_be_guessed_is_refused():
    with pytest.raises(ValueError, match="16 bytes"):
        Seals(b"short")
