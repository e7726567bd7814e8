"""Make ids in the form that the API uses, and hash the params of requests."""

import hashlib
import secrets

import orjson

BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def random_id(prefix: str) -> str:
    """Return a random id: `prefix`, `_01` and 22 base58 characters, as `msgbatch_01MxdL3LT4Dizo9t3j6FY9Ap`."""
    return prefix + "_01" + "".join(secrets.choice(BASE58) for _ in range(22))


def derived_id(prefix: str, *parts: str | bytes) -> str:
    """Return an id in the form of `random_id` that depends on the parts alone: equal parts give equal ids."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    number = int.from_bytes(digest.digest(), "big")
    letters = []
    for _ in range(22):
        number, letter = divmod(number, 58)
        letters.append(BASE58[letter])
    return f"{prefix}_01{''.join(letters)}"


def params_sha256(params: object) -> str:
    """Return the SHA-256 of the params in hex. The order of keys does not change it."""
    return hashlib.sha256(orjson.dumps(params, option=orjson.OPT_SORT_KEYS)).hexdigest()
