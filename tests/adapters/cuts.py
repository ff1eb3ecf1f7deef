"""Streams cut into chunks at any position, for hypothesis."""

from hypothesis import strategies as st

SIZES = st.lists(st.integers(1, 9) | st.integers(10, 200), max_size=40)


def cut(data, sizes):
    """Cut into chunks of the given sizes; the last one has the rest."""
    chunks = []
    for size in sizes:
        chunks.append(data[:size])
        data = data[size:]
    return [chunk for chunk in [*chunks, data] if chunk]


def passed(part, chunks):
    """Return the whole output of a filter that is fed chunks."""
    return b"".join([*(part.feed(chunk) for chunk in chunks), part.rest()])
