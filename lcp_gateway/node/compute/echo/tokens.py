"""What counts as a token here: a word with the white space before it, long words in pieces of sixteen characters."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence

# Possessive quantifiers keep this linear in the length of a run of white space.
_TOKEN = re.compile(r"\s*+\S{1,16}|\s++")


def split(text: str) -> list[str]:
    """Cut a text into its tokens; joined, they are the text."""
    return _TOKEN.findall(text)


async def paced(tokens: Sequence[str], tokens_per_second: float) -> AsyncIterator[str]:
    """Give tokens at a pace, the first after one step; 0 means at once. Lateness is made up, not added up."""
    if tokens_per_second <= 0:
        for token in tokens:
            yield token
        return
    clock = asyncio.get_running_loop().time
    start = clock()
    for count, token in enumerate(tokens, 1):
        pause = start + count / tokens_per_second - clock()
        if pause > 0:
            await asyncio.sleep(pause)
        yield token
