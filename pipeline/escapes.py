"""Which characters of other people's texts are not shown as they are, and what is shown instead. Pure.

Control characters command a terminal, and bidirectional marks let a line read otherwise than it is. Keys, names of
files and messages of the API may hold either.
"""

import json
import re
from typing import Any

import orjson

#: C0 but for newline and tab, DEL and C1, line and paragraph separators, bidirectional marks, and lone surrogates.
COMMANDS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_COMMANDS = re.compile(f"[{COMMANDS}]")
_COMMANDS_OR_BREAKS = re.compile(f"[\t\n{COMMANDS}]")
_NOT_ASCII = re.compile("[\x7f-\U0010ffff]")


def escaped(text: str) -> str:
    r"""The text with `\x1b` in place of ESC, and so on; newlines and tabs stay."""
    return _COMMANDS.sub(_escape, text)


def inline(text: str) -> str:
    r"""As `escaped`, and in one line: newlines and tabs become `\n` and `\t`."""
    return _COMMANDS_OR_BREAKS.sub(_escape, text)


def dropped(text: str) -> str:
    """The text without these characters; newlines and tabs stay."""
    return _COMMANDS.sub("", text)


def is_plain(text: str) -> bool:
    """Whether `inline` would change nothing."""
    return _COMMANDS_OR_BREAKS.search(text) is None


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def json_text(value: Any, *, ascii_only: bool, indent: bool = False) -> str:
    r"""The value as JSON. All that `escaped` escapes stands as `\u001b`, and with ascii_only all that is not ASCII."""
    option = orjson.OPT_NON_STR_KEYS | (orjson.OPT_INDENT_2 if indent else 0)
    try:
        text = orjson.dumps(value, default=str, option=option).decode()
    except TypeError:  # a lone surrogate, which a file's name may have
        text = json.dumps(value, default=str, indent=2 if indent else None)
    if text.isascii() and "\x7f" not in text:
        return text
    return (_NOT_ASCII if ascii_only else _COMMANDS).sub(lambda found: json.dumps(found[0])[1:-1], text)
