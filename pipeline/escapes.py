"""Escape the characters of foreign texts that could control or mislead a terminal. Pure.

Control characters give commands to a terminal, and bidirectional marks change the order in which a line is shown. Keys,
file names and messages of the API may hold both.
"""

import json
import re
from typing import Any

import orjson

#: C0 except newline and tab, DEL and C1, line and paragraph separators, bidirectional marks, and lone surrogates.
COMMANDS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_COMMANDS = re.compile(f"[{COMMANDS}]")
_COMMANDS_OR_BREAKS = re.compile(f"[\t\n{COMMANDS}]")
_NOT_ASCII = re.compile("[\x7f-\U0010ffff]")


def escaped(text: str) -> str:
    r"""Return the text with each character of COMMANDS as an escape, ESC as `\x1b`; newlines and tabs stay."""
    return _COMMANDS.sub(_escape, text)


def inline(text: str) -> str:
    r"""Return the text escaped and on one line: newlines and tabs become `\n` and `\t`."""
    return _COMMANDS_OR_BREAKS.sub(_escape, text)


def symbols(text: str) -> str:
    """Return the text with a visible symbol for each character of COMMANDS: ESC as ␛, others as ⟦U+202E⟧."""
    return _COMMANDS.sub(_symbol, text)


def stripped(text: str) -> str:
    """Return the text without the characters of COMMANDS; newlines and tabs stay."""
    return _COMMANDS.sub("", text)


def is_plain(text: str) -> bool:
    """Return whether `inline` leaves the text unchanged."""
    return _COMMANDS_OR_BREAKS.search(text) is None


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def _symbol(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)  # the control pictures of Unicode, in the same order
    return "\u2421" if code == 0x7F else f"\u27e6U+{code:04X}\u27e7"


def json_text(value: Any, *, ascii_only: bool, indent: bool = False) -> str:
    r"""Return the value as JSON text, with the characters of COMMANDS as JSON escapes such as `\u001b`.

    ascii_only: escape all characters that are not ASCII. indent: on several lines, indented by two spaces.
    Values that JSON does not know are written as `str(value)`.
    """
    option = orjson.OPT_NON_STR_KEYS | (orjson.OPT_INDENT_2 if indent else 0)
    try:
        text = orjson.dumps(value, default=str, option=option).decode()
    except TypeError:  # orjson refuses lone surrogates, which a file name may hold
        text = json.dumps(value, default=str, indent=2 if indent else None)
    if text.isascii() and "\x7f" not in text:
        return text
    return (_NOT_ASCII if ascii_only else _COMMANDS).sub(lambda found: json.dumps(found[0])[1:-1], text)
