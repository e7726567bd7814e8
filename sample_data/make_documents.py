"""Make documents.parquet: 500 real texts, the docstrings of Python's standard library.

python sample_data/make_documents.py [OUT]

The same Python version gives the same rows; another version brings its own wording. ORIGIN.md says where the texts come
from and under which licence they may be passed on.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import polars as pl

ROWS = 500
SHORTEST, LONGEST = 200, 6000  # characters; shorter texts have nothing to summarize, longer ones are whole manuals
LONG = 1200  # longer texts are taken first, because most docstrings are short
PER_MODULE = 14  # so that no large module takes most of the sample (tkinter would take half)

# Importing these opens no window, starts no thread and needs no system library that a small image may lack.
MODULES = """
    abc argparse array ast asyncio base64 bdb binascii bisect bz2 calendar cmd code codecs codeop collections
    collections.abc colorsys compileall concurrent.futures configparser contextlib contextvars copy copyreg csv
    dataclasses datetime decimal difflib dis doctest email email.header email.headerregistry email.message
    email.policy email.utils enum filecmp fileinput fnmatch fractions ftplib functools gc getopt getpass gettext
    glob graphlib gzip hashlib heapq hmac html html.parser http http.client http.cookiejar http.cookies
    http.server imaplib importlib importlib.abc importlib.metadata importlib.resources importlib.util inspect io
    ipaddress itertools json keyword linecache locale logging logging.config logging.handlers lzma mailbox math
    mimetypes mmap modulefinder multiprocessing netrc numbers operator os os.path pathlib pdb pickle pickletools
    pkgutil platform plistlib poplib posixpath pprint profile pstats py_compile pyclbr pydoc queue quopri random
    re reprlib sched secrets select selectors shelve shlex shutil signal smtplib socket socketserver sqlite3 ssl
    stat statistics string struct subprocess sys sysconfig tabnanny tarfile tempfile textwrap threading time
    timeit token tokenize trace traceback tracemalloc types typing unicodedata unittest unittest.mock urllib.error
    urllib.parse urllib.request urllib.robotparser uuid venv warnings wave weakref webbrowser wsgiref.handlers
    wsgiref.headers wsgiref.simple_server wsgiref.util wsgiref.validate xml.dom.minidom xml.dom.pulldom
    xml.etree.ElementTree xml.sax.handler xml.sax.saxutils xmlrpc.client xmlrpc.server zipapp zipfile zipimport
    zlib zoneinfo
"""


def own_doc(thing: object) -> str:
    """Return the docstring of `thing` itself, dedented; empty if it has none or inherits it."""
    raw = vars(thing).get("__doc__") if isinstance(thing, type) else getattr(thing, "__doc__", None)
    return inspect.cleandoc(raw).strip() if isinstance(raw, str) else ""


def documented(name: str, module: ModuleType) -> Iterator[tuple[str, str]]:
    """(doc_id, text) of a module, its public classes and functions, and the public methods of those classes.

    name: as it is imported; os.path says of itself that it is posixpath, or ntpath.
    """
    yield name, own_doc(module)
    public = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
    for member_name in sorted(public):
        member = getattr(module, member_name, None)
        if not (inspect.isclass(member) or inspect.isroutine(member)):
            continue
        home = getattr(member, "__module__", None) or name
        if home.split(".")[0].lstrip("_") != module.__name__.split(".")[0]:
            continue  # imported from another module, to which it belongs
        yield f"{name}.{member_name}", own_doc(member)
        if inspect.isclass(member):
            for attribute_name, attribute in sorted(vars(member).items()):
                if not attribute_name.startswith("_") and inspect.isroutine(attribute):
                    yield f"{name}.{member_name}.{attribute_name}", own_doc(attribute)


def preference(document: tuple[str, str, str]) -> tuple[bool, bytes]:
    """Return the sort key: long texts first, then by digest, which is random but equal on every machine."""
    doc_id, _, text = document
    return len(text) <= LONG, hashlib.sha256(doc_id.encode()).digest()


def all_documents() -> Iterator[tuple[str, str, str]]:
    """Return (doc_id, module, text) of each text of the right length, at most PER_MODULE per module, each text once."""
    seen: set[str] = set()
    for name in MODULES.split():
        found = []
        for doc_id, text in documented(name, importlib.import_module(name)):
            if SHORTEST <= len(text) <= LONGEST and text not in seen:
                seen.add(text)
                found.append((doc_id, name, text))
        yield from sorted(found, key=preference)[:PER_MODULE]


def main() -> None:
    parser = argparse.ArgumentParser(description="Make documents.parquet from the standard library's docstrings.")
    parser.add_argument("out", nargs="?", type=Path, default=Path(__file__).parent / "documents.parquet")
    out: Path = parser.parse_args().out

    documents = sorted(all_documents(), key=preference)
    if len(documents) < ROWS:
        sys.exit(f"only {len(documents)} texts found, {ROWS} are needed: raise PER_MODULE")
    chosen = sorted(documents[:ROWS])
    pl.DataFrame(
        chosen, schema={"doc_id": pl.String, "module": pl.String, "text": pl.String}, orient="row"
    ).write_parquet(out, compression="zstd")
    print(f"{out}: {len(chosen)} of {len(documents)} texts, Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
