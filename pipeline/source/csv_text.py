"""Prepare the text of a CSV file for pyarrow, and refuse faulty quotes with their row. Edge: files.

pyarrow gets UTF-8 without a byte order mark, and without the lines that `csv.skip` and `csv.comment` leave out. pyarrow
accepts text after a closing quote, and a quote that is never closed; both are refused here.
"""

import codecs
import csv
import functools
import io
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.errors import SourceError
from pipeline.source import kinds
from pipeline.source.files import SourceFile
from pipeline.source.frames import BLOCK_BYTES, LONGEST_ROW
from pipeline.source.translated import other_encoding

READ_BYTES = BLOCK_BYTES  # that are read at once from a file
SHOWN_BYTES = 20  # before and after a fault, in its message

_LINE_END = re.compile(rb"\r\n|\r|\n")
_MARK = b"\xef\xbb\xbf"  # a byte order mark, in UTF-8


#: Identities of files whose quotes are all right, because a source is read several times and checked once.
_CHECKED: set[tuple[object, ...]] = set()


def open_text(file: SourceFile) -> "CsvText | pa.NativeFile":
    """Return the text of a CSV file, to be read once from start to end.

    A local file that needs no change and no check is returned as a file of pyarrow, which reads it without Python.
    """
    plain = file.csv.skip == 0 and file.csv.comment is None and file.csv.escape is None
    if plain and file.is_local and _is_utf8(file) and _is_checked(file):
        return pa.input_stream(file.native(), compression=file.compression)
    return CsvText(file)


def _is_utf8(file: SourceFile) -> bool:
    return codecs.lookup(file.encoding).name == "utf-8"


def _is_checked(file: SourceFile) -> bool:
    return not file.csv.quote or _identity(file) in _CHECKED


def _identity(file: SourceFile) -> tuple[object, ...]:
    """Return what the file's content and its reading depend on; equal for the same file, unchanged."""
    return (file.path, file.found, file.delimiter, file.encoding, file.csv.model_dump_json())


class CsvText:
    """The text of a CSV file, prepared for pyarrow; its quotes are checked while it is read."""

    def __init__(self, file: SourceFile) -> None:
        self._file = file
        self._blocks = filter(None, _text(file, _decompressed(file)))
        self._held = b""
        self._quotes = None if _is_checked(file) else _Quotes(file)

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, fewer at the end. Raises SourceError, and pyarrow's errors about the file."""
        parts = [self._held] if self._held else []  # a single block is not copied
        missing = size - len(self._held)
        while missing > 0 and (block := next(self._blocks, b"")):
            parts.append(block)
            missing -= len(block)
        data = b"".join(parts)
        data, self._held = data[:size], data[size:]
        if self._quotes is not None:
            try:
                self._quotes.take(data)
            except _Fault as fault:
                raise _at_place(self._file, fault) from None
            if not data:
                _CHECKED.add(_identity(self._file))
        return data


def _at_place(file: SourceFile, fault: "_Fault") -> SourceError:
    file.check()  # a file that is still being written may have any fault
    return SourceError(f"{_place(file, text_bytes=fault.at)}: {fault}")


def _decompressed(file: SourceFile) -> Iterator[bytes]:
    """Yield the decompressed bytes of a file in blocks. Raises SourceError if a compressed file contains no text."""
    with file.native() as raw, pa.input_stream(raw, compression=file.compression) as stream:
        is_start = True
        while data := stream.read(READ_BYTES):
            if is_start and file.compression is not None and (kind := kinds.kind_of(data)):
                raise SourceError(
                    f"{file.path}: its decompressed content is {kind.name}, not text; unpack and check it"
                )
            is_start = False
            yield data


def _text(file: SourceFile, blocks: Iterator[bytes], errors: str = "strict") -> Iterator[bytes]:
    """Yield the prepared text of a file, as UTF-8, in blocks that may be empty. blocks: the file's decompressed bytes.

    errors: how Python's decoder treats bytes that are not text; with "strict" they raise SourceError.
    """
    if not _is_utf8(file):
        blocks = _transcoded(file, blocks, errors)
    blocks = _without_mark(blocks)
    if file.csv.skip:
        blocks = _without_lines(blocks, file.csv.skip)
    if file.csv.comment is not None:
        blocks = _without_comments(_patterns_of(file).row, blocks, file.csv.comment.encode())
    if file.csv.escape is not None:
        blocks = _with_escapes_as_text(file, blocks)
    return blocks


def _transcoded(file: SourceFile, blocks: Iterable[bytes], errors: str) -> Iterator[bytes]:
    """Yield the text in UTF-8, from blocks in the file's encoding."""
    decoder = codecs.getincrementaldecoder(file.encoding)(errors)
    taken = 0
    for block in _with_end(blocks):
        try:
            text = decoder.decode(block, final=not block).encode()
        except UnicodeDecodeError as exc:
            at = taken + len(block) - len(exc.object) + exc.start
            raise SourceError(other_encoding(_place(file, raw_bytes=at + 1), file)) from exc
        taken += len(block)
        yield text


def _with_end(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the blocks, then an empty one."""
    yield from blocks
    yield b""


def _without_mark(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the text without a byte order mark at its start."""
    first = b""
    while len(first) < len(_MARK) and (block := next(blocks, b"")):
        first += block
    yield first.removeprefix(_MARK)
    yield from blocks


def _without_lines(blocks: Iterator[bytes], lines: int) -> Iterator[bytes]:
    """Yield the text after the first `lines` lines. A line end within quotes counts, too."""
    held = b""
    for block in blocks:
        held, at = held + block, 0
        while lines and (end := _LINE_END.search(held, at)) and end.end() < len(held):  # \r may be half of \r\n
            at, lines = end.end(), lines - 1
        held = held[at:]
        if not lines:
            yield held
            yield from blocks
            return


def _without_comments(row: re.Pattern[bytes], blocks: Iterator[bytes], comment: bytes) -> Iterator[bytes]:
    """Yield the text without the lines that begin with `comment`. A line within a quoted field is never a comment.

    row: matches one row with its line end.
    """
    held = b""
    for block in _with_end(blocks):
        held, at, kept = held + block, 0, list[bytes]()
        while at < len(held):
            is_comment = held.startswith(comment, at)
            found = _LINE_END.search(held, at) if is_comment else row.match(held, at)
            end = found.end() if found else len(held)
            if block and end == len(held):  # the rest of this line may follow, and \r may be the half of \r\n
                break
            kept += [] if is_comment else [held[at:end]]
            at = end
        held = held[at:]
        yield b"".join(kept)


def _with_escapes_as_text(file: SourceFile, blocks: Iterator[bytes]) -> Iterator[bytes]:
    r"""Yield the text with each escape character doubled that is followed by an ordinary character.

    So C:\temp and MySQL's \N stay unchanged; pyarrow would drop the escape character.
    """
    escape, delimiter, quote = _bytes(file.csv.escape), _bytes(file.delimiter), _bytes(file.csv.quote)
    special = re.escape(escape + delimiter + quote + b"\r\n")
    pair = re.compile(b"%b([%b])?" % (re.escape(escape), special))
    held = b""
    for block in _with_end(blocks):
        data = held + block
        whole = data.rstrip(escape) if block else data  # the character after the last escape is in the next block
        held = data[len(whole) :]
        yield pair.sub(lambda found: found[0] if found[1] else escape * 2, whole) if escape in whole else whole


# -- faults ----------------------------------------------------------------------------------------------------------


class _Fault(Exception):
    """A fault in a text. at: the number of the text's bytes before it; None if it is at the end."""

    def __init__(self, message: str, at: int | None) -> None:
        super().__init__(message)
        self.at = at


class _Patterns(NamedTuple):
    """Regular expressions for one dialect of CSV. None of them backtracks.

    outside: matches fields and line ends, up to a quoted field that is faulty or not closed. within: matches the text
    between quotes. row: matches a row with its line end. Each also looks at the byte before the start of the match.
    """

    outside: re.Pattern[bytes]
    within: re.Pattern[bytes]
    row: re.Pattern[bytes]


def _patterns_of(file: SourceFile) -> _Patterns:
    return _patterns(_bytes(file.delimiter), _bytes(file.csv.quote), _bytes(file.csv.escape))


@functools.cache
def _patterns(delimiter: bytes, quote: bytes, escape: bytes) -> _Patterns:
    d, q, e = re.escape(delimiter), re.escape(quote), re.escape(escape)
    pair = rb"|%b[\s\S]" % e if escape else b""  # an escaped character
    if not quote:
        return _Patterns(
            re.compile(b""), re.compile(b""), re.compile(rb"(?:[^\r\n%b]++%b)*+(?:\r\n|\r|\n)" % (e, pair))
        )
    within = b"(?:[^%b%b]++|%b%b%b)*+" % (q, e, q, q, pair)
    # a quote after any other byte than these is a part of an unquoted field
    inner = rb"(?<=[^%b\r\n])%b" % (d, q) + (rb"%b%b*+" % (pair, q) if escape else b"")
    outside = rb"(?:[^%b%b]++|%b|%b%b%b(?=[%b\r\n]))*+" % (q, e, inner, q, within, q, d)
    row = rb"(?:[^%b%b\r\n]++|%b|%b%b%b)*+(?:\r\n|\r|\n)" % (q, e, inner, q, within, q)
    return _Patterns(re.compile(outside), re.compile(within), re.compile(row))


class _Quotes:
    """Checks that each quoted field is closed, and ends with its closing quote."""

    def __init__(self, file: SourceFile) -> None:
        self._outside, self._within, _ = _patterns_of(file)
        self._quote, self._escape = _bytes(file.csv.quote), _bytes(file.csv.escape)
        self._ends = _bytes(file.delimiter) + b"\r\n"
        self._rest = b"\n"  # one checked byte, then quotes and escapes whose meaning depends on the next byte
        self._is_within = False
        self._at = -1  # position in the text of the first byte of the rest

    def take(self, data: bytes) -> None:
        """Check the next bytes of the text; no bytes mean its end. Raises _Fault."""
        if not data:
            return self._end()
        data = self._rest + data
        end = len(data.rstrip(self._quote + self._escape))
        if end > 1:
            if self._quote in data:
                self._check(data, end)
            self._rest = self._last(data, end) + data[end:]
            self._at += end - 1
        else:
            self._rest = data
        return None

    def _check(self, data: bytes, end: int) -> None:
        """Check `data` from its second byte to before `end`. Raises _Fault."""
        at = 1
        while at < end:
            if not self._is_within:
                at = _matched(self._outside, data, at, end)
                if at == end:
                    return
                self._is_within = True
                at += 1
            at = _matched(self._within, data, at, end)
            if at == end:
                return
            self._is_within = False
            at += 1
            if data[at] not in self._ends:
                raise _Fault(self._behind_quote(data, at), self._at + at)

    def _last(self, data: bytes, end: int) -> bytes:
        """Return the last checked byte; "x" in place of an escaped byte, which ends no field."""
        before = data[: end - 1]
        escapes = len(before) - len(before.rstrip(self._escape)) if self._escape else 0
        return b"x" if escapes % 2 else data[end - 1 : end]

    def _end(self) -> None:
        """Check the rest, as if a line end followed it. Raises _Fault."""
        rest, self._rest = self._rest + b"\n", b"\n"
        self._check(rest, len(rest))
        if self._is_within:
            raise _Fault(f"a quote ({self._quote.decode()}) is opened and never closed", None)

    def _behind_quote(self, data: bytes, at: int) -> str:
        """Return the message for text after a closing quote. at: the index of the first byte after the quote."""
        before, behind = (
            data[max(1, at - SHOWN_BYTES) : at].splitlines()[-1],
            data[at : at + SHOWN_BYTES].splitlines()[0],
        )
        shown = (before + behind).decode(errors="replace")
        quote = self._quote.decode()
        remedy = f"write a quote within quotes twice ({quote * 2})"
        if data[at - 2 : at - 1] == b"\\":
            remedy += r", or, if quotes are escaped by a backslash, set source.csv.escape: '\'"
        shown = shown if shown.isprintable() else repr(shown)
        return f"text follows the closing quote of a field ({shown}); {remedy}"


def _matched(pattern: re.Pattern[bytes], data: bytes, at: int, end: int) -> int:
    """Return where the match that begins at `at` ends. The patterns match at every position."""
    found = pattern.match(data, at, end)
    assert found is not None
    return found.end()


def _bytes(text: str | None) -> bytes:
    return (text or "").encode()


def _place(file: SourceFile, *, raw_bytes: int | None = None, text_bytes: int | None = None) -> str:
    """Return the row, from 1, for a message: the row after so many bytes of the file, or of its prepared text.

    raw_bytes, text_bytes: one of them is given. Reads the file again, up to there.
    """
    blocks = _limited(_decompressed(file), raw_bytes)
    text = _limited(_text(file, blocks, errors="replace"), text_bytes)
    csv.field_size_limit(LONGEST_ROW)
    lines = io.TextIOWrapper(io.BufferedReader(_Blocks(text)), encoding="utf-8", errors="replace", newline="")
    options: dict[str, Any] = {"quotechar": file.csv.quote} if file.csv.quote else {"quoting": csv.QUOTE_NONE}
    rows = csv.reader(lines, delimiter=file.delimiter, escapechar=file.csv.escape, **options)
    number = sum(1 for row in rows if row) - file.csv.header
    return f"{file.path} row {number}" if number else f"{file.path}: the header"


def _limited(blocks: Iterator[bytes], size: int | None) -> Iterator[bytes]:
    """Yield the first `size` bytes of the blocks; None for all."""
    for block in blocks:
        yield block if size is None else block[:size]
        size = None if size is None else size - len(block)
        if size is not None and size <= 0:
            return


class _Blocks(io.RawIOBase):
    """Blocks of bytes, as a file that can be read."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._held = blocks, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while not self._held and (block := next(self._blocks, None)) is not None:
            self._held = block
        size = min(len(buffer), len(self._held))
        buffer[:size], self._held = self._held[:size], self._held[size:]
        return size
