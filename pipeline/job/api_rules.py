"""Which values may the section `api` of a job have? Pure.

A job file is shared and stored, so it holds no secrets: a value that looks like one is refused. No message shows it.
"""

import re
from urllib.parse import urlsplit

_VARIABLE = re.compile(r"\$[A-Za-z_][A-Za-z0-9_]*")
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # of a header. Source: RFC 9110, section 5.6.2
_SECRET_NAME = re.compile(r"auth|api-?key|access-?key|token|secret|passw|cookie|credential|signature", re.IGNORECASE)
_SECRET = re.compile(
    r"\bsk-[\w-]{8,}|^(bearer|basic|token)\s+\S|\bAKIA[0-9A-Z]{16}\b|\beyJ[\w-]{10,}\.|\bgh[a-z]_\w{20,}|\bxox[a-z]-\w",
    re.IGNORECASE,
)
_LONG = re.compile(r"(?=\S*[0-9])(?=\S*[A-Za-z])[A-Za-z0-9_=-]{40,}")  # random letters and digits
#: Headers that the pipeline or the SDK sets, and what to do instead.
_OURS = {
    "anthropic-beta": "request.betas sets this header; name the betas there",
    "content-type": "the SDK sets this header; remove it",
    "content-length": "the SDK sets this header; remove it",
    "host": "api.base_url sets this header; remove it",
}


def is_variable(value: str) -> bool:
    """Return whether a value names an environment variable, as `$NAME`."""
    return _VARIABLE.fullmatch(value) is not None


def looks_like_key(value: str) -> bool:
    """Return whether a value looks like a key, a token or a password."""
    return _SECRET.search(value) is not None or _LONG.search(value) is not None


def problem_of_url(url: str) -> str | None:
    """Return why this cannot be api.base_url, as the end of a sentence; None if it can."""
    if is_variable(url):
        return None
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return "this is not an http(s) URL; write one like https://gateway.example, or $NAME of a variable with it"
    if "@" in parts.netloc or looks_like_key(url):
        return "this holds a key or a password, which would be stored with the job; write $NAME of a variable with it"
    if not valid or any(character.isspace() for character in url) or parts.query or parts.fragment:
        return f"{url!r} is not an http(s) URL; write one like https://gateway.example, or $NAME of a variable with it"
    return None


def problem_of_header(name: str, value: str) -> str | None:
    """Return why this cannot be one of api.headers, as the end of a sentence; None if it can."""
    if _NAME.fullmatch(name) is None:
        return f"{name!r} is not the name of a header"
    if name.lower() in _OURS:
        return f"{name}: {_OURS[name.lower()]}"
    if is_variable(value):
        return None
    if _SECRET_NAME.search(name) or looks_like_key(value):
        return f"{name}: its value may be a key, which would be stored with the job; write $NAME of a variable with it"
    if not value.isascii() or not value.isprintable():
        return f"{name}: its value has characters that a header cannot have"
    return None
