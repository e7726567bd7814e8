"""Ids as the API makes them, at random or from what they name, and the hash that tells equal params."""

import hashlib
import secrets

import orjson

BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def random_id(prefix: str) -> str:
    """`prefix` + 01 + 22 base58 characters, as `msgbatch_01MxdL3LT4Dizo9t3j6FY9Ap`."""
    return prefix + "_01" + "".join(secrets.choice(BASE58) for _ in range(22))


def derived_id(prefix: str, *parts: str | bytes) -> str:
    """Looks like a random id, but equal parts give an equal id."""
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
    """Hex sha256 of the params as orjson writes them with sorted keys: equal for equal params whatever their order."""
    return hashlib.sha256(orjson.dumps(params, option=orjson.OPT_SORT_KEYS)).hexdigest()
