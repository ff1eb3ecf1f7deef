"""Refuses values that came with the quotes or brackets of another notation: docker's env files keep both."""

from typing import Final

_QUOTES: Final = "\"'`"
_BRACKETS: Final = ("[]", "{}")


def refuse_quotes(text: str) -> str:
    """Return the text as it is. No message repeats it.

    Raises:
        ValueError: it begins or ends with a quote, or stands in brackets as JSON does.
    """
    if text and (text[0] in _QUOTES or text[-1] in _QUOTES):
        raise ValueError("has a quote at its begin or end, which would be part of it: leave it out")
    if any(text.startswith(begin) and text.endswith(end) for begin, end in _BRACKETS):
        raise ValueError("stands in brackets, which would be part of it: leave them out")
    return text


def refuse_json_list(value: object) -> None:
    """Refuse text that is to be a list with commas, and is written as JSON or in quotes as a whole.

    Raises:
        ValueError: it is such a text. The message repeats nothing of it.
    """
    text = value.strip() if isinstance(value, str) else ""
    if text.startswith("[") or text.endswith("]"):
        raise ValueError(
            'looks like a JSON array: write the items with commas between them, without "[", "]" and quotes'
        )
    if len(text) > 1 and text[0] == text[-1] and text[0] in _QUOTES and text.count(text[0]) == 2:  # noqa: PLR2004 - a pair
        raise ValueError("stands in quotes, which would be part of it: leave them out")
