"""Raw JSON text for hypothesis: any white space, any spelling of strings and numbers, duplicate keys."""

import json

from hypothesis import strategies as st

SPACE = st.text(" \t\n\r", max_size=2)
NUMBERS = st.sampled_from(["0", "-0", "1E+2", "1e-7", "0.10", "-12.50e+03", "123456789012345678901234567890", "7"])
SHORT_ESCAPES = {'"': '\\"', "\\": "\\\\", "/": "\\/", "\b": "\\b", "\n": "\\n", "\t": "\\t"}
LETTERS = st.characters(exclude_categories=["Cs"])
# Characters that could confuse a parser: the key as text, quotes, brackets, and surrogates.
ODD_TEXTS = st.sampled_from(["model", '"model"', '"model":"x"', "}", "{[", '\\"', "\\", "", "é😀", "\x7f", '"', "mode"])
HALVES = st.sampled_from(["\\ud83d", "\\uDE00", "\\ud83d\\ude00"])


def written(letter, how):
    """Write one character of a string: as it is, with its short escape, or as a four-digit escape of either case."""
    code = ord(letter)
    if how == "short" and letter in SHORT_ESCAPES:
        return SHORT_ESCAPES[letter]
    if how == "plain" and code >= 0x20 and letter not in '"\\':
        return letter
    if code > 0xFFFF:
        return letter
    return f"\\u{code:04x}" if how != "capitals" else f"\\u{code:04X}"


@st.composite
def tokens(draw, texts=None):
    """Return a string's token, with its quotes."""
    text = draw(st.text(LETTERS, max_size=6) | ODD_TEXTS if texts is None else texts)
    ways = st.sampled_from(["plain", "plain", "plain", "short", "small", "capitals"])
    token = "".join(written(letter, draw(ways)) for letter in text)
    return f'"{token}{draw(HALVES) if texts is None and draw(st.booleans()) else ""}"'


@st.composite
def joined(draw, opening, items, closing):
    out = opening + draw(SPACE)
    for place, item in enumerate(items):
        out += ("," + draw(SPACE) if place else "") + item + draw(SPACE)
    return out + closing


@st.composite
def member(draw, keys, values):
    return draw(keys) + draw(SPACE) + ":" + draw(SPACE) + draw(values)


def containers(inner):
    keys = tokens() | tokens(st.just("model"))
    return st.lists(inner, max_size=3).flatmap(lambda items: joined("[", items, "]")) | st.lists(
        member(keys, inner), max_size=3
    ).flatmap(lambda items: joined("{", items, "}"))


VALUES = st.recursive(st.sampled_from(["true", "false", "null"]) | NUMBERS | tokens(), containers, max_leaves=8)


@st.composite
def deep(draw):
    """Return a value nested more deeply than a single regular expression match covers."""
    value = draw(VALUES)
    for opening in draw(st.lists(st.sampled_from("[{"), min_size=5, max_size=20)):
        value = f"[{value} , 1]" if opening == "[" else f'{{"model" :{value}}}'
    return value


@st.composite
def objects(draw, named, absent=()):
    """Return the raw text of an object as (before, after) one member, and that member's ``key : `` and value.

    ``named`` draws the member's value token; ``absent`` names keys that occur nowhere else at the top level.
    """
    values = VALUES | deep()
    others = member(tokens().filter(lambda token: decoded(token) not in absent), values)
    before = draw(st.lists(others, max_size=3))
    after = draw(st.lists(others, max_size=3))
    opening = draw(SPACE) + "{" + draw(SPACE)
    prefix = opening + "".join(item + draw(SPACE) + "," + draw(SPACE) for item in before)
    prefix += draw(tokens(st.just("model"))) + draw(SPACE) + ":" + draw(SPACE)
    value = draw(named)
    suffix = draw(SPACE) + "".join("," + draw(SPACE) + item + draw(SPACE) for item in after)
    return prefix, value, suffix + "}" + draw(SPACE)


def decoded(token):
    return json.loads(token)
