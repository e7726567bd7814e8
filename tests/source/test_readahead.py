"""A process ends after an error in a large object that pyarrow reads ahead, from a store that answers slowly."""

import gzip
import io
import subprocess
import sys
from hashlib import sha512
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest

from tests.support.object_storage import S3
from tests.support.processes import environment

PAD = "x" * 160
LATENCY = 0.05
DEADLINE = 90  # seconds: far more than any of them takes on a busy machine
SCRIPT = (
    "import sys; from pipeline import load_job, run; run(load_job(sys.argv[1]), database=sys.argv[2], emulator=True)"
)
FIRST_ROW = """
import sys
from pipeline.source import files, formats
from pipeline.job.model import Source
(file,) = files.find(Source(path=sys.argv[1], key="id"))
frames = formats.FileInput(file).frames(["id", "text"])
next(frames)
sys.exit(3)
"""
EACH = """
import sys
from pipeline.source import files, formats
from pipeline.errors import SourceError
from pipeline.job.model import Source
held = []
for url in sys.argv[1:]:
    (file,) = files.find(Source(path=url, key="id"))
    try:
        for _ in formats.FileInput(file).frames(["id", "text"]):
            pass
    except SourceError as exc:
        held.append(exc)
        print(exc, file=sys.stderr)
sys.exit(3)
"""


def lines(bad: bytes) -> bytes:
    """A CSV file with 20,000 good rows, this line, and 60,000 more rows."""
    rows = [b"%d,%s\n" % (i, sha512(b"%d" % i).hexdigest().encode()) for i in range(80_000)]  # gzip finds little
    return b"id,text\n" + b"".join(rows[:20_000]) + bad + b"".join(rows[20_000:])


WRONG = {
    "a wrong byte": (lines(b"bad,\xff\xfe\xfd\n"), "row 20001: the text is not in utf-8"),
    "two fields too many": (lines(b"bad,a,b,c\n"), "row 20001: the row has 4 fields, the header 2"),
}


def job(tmp_path: Path, url: str) -> Path:
    """A job over this source; its file."""
    file = tmp_path / "notes.yaml"
    file.write_text(
        f"name: notes\nsource: {{path: '{url}', key: id}}\nsink: {{table: note_summaries}}\n"
        'request: {model: claude-haiku-4-5, max_tokens: 60, prompt: "Summarize: {{ text }}"}\n'
    )
    return file


def ended(*arguments: str, times: int = 1) -> list[tuple[int, str]]:
    """So many processes of Python at a time: the exit code of each, and what it said on stderr."""
    variables = environment("http://127.0.0.1:9")
    begun = [
        subprocess.Popen([sys.executable, *arguments], env=variables, stderr=subprocess.PIPE, text=True)
        for _ in range(times)
    ]
    try:
        return [(process.returncode, said) for process in begun for _, said in [process.communicate(timeout=DEADLINE)]]
    finally:
        for process in begun:
            process.kill()
            process.communicate()


@pytest.mark.long
@pytest.mark.parametrize(
    ("wrong", "name"),
    [("a wrong byte", "notes.csv"), ("two fields too many", "notes.csv"), ("a wrong byte", "notes.csv.gz")],
)
def test_check_ends_after_an_error_in_an_object(s3: S3, tmp_path: Path, wrong: str, name: str) -> None:
    data, problem = WRONG[wrong]
    file = job(tmp_path, s3.put(name, gzip.compress(data, 1) if name.endswith(".gz") else data))
    s3.latency = LATENCY

    for code, said in ended("-m", "pipeline.cli", "check", str(file), times=2):
        assert (code, said.count("\n")) == (2, 1), said
        assert problem in said


@pytest.mark.long
def test_run_ends_after_an_error_in_an_object(s3: S3, tmp_path: Path) -> None:
    data, problem = WRONG["a wrong byte"]
    file = job(tmp_path, s3.put("notes.csv", data))
    s3.latency = LATENCY

    ((code, said),) = ended("-m", "pipeline.cli", "run", str(file), "--yes", "--emulator")

    assert (code, problem in said) == (2, True), said


@pytest.mark.long
def test_a_script_ends_after_an_error_in_an_object(s3: S3, tmp_path: Path) -> None:
    data, problem = WRONG["two fields too many"]
    file = job(tmp_path, s3.put("notes.tsv", data.replace(b",", b"\t")))
    s3.latency = LATENCY

    ((code, said),) = ended("-c", SCRIPT, str(file), f"sqlite:///{tmp_path}/batches.db")

    assert (code, problem in said) == (1, True), said  # a traceback, which holds all frames of the reader


@pytest.mark.long
def test_check_ends_when_the_object_is_replaced_meanwhile(s3: S3, tmp_path: Path) -> None:
    file = job(tmp_path, s3.put("notes.csv", lines(b"")))
    s3.latency = LATENCY
    gets = 0

    def replaced(request: str) -> bool:
        nonlocal gets
        gets += request.startswith("GET /bucket/notes.csv")
        if gets == 4:
            gets += 1
            s3.put("notes.csv", lines(b"other,other\n"))
        return False

    s3.broken = replaced
    ((code, said),) = ended("-m", "pipeline.cli", "check", str(file))

    assert (code, said.count("\n")) == (2, 1), said
    assert "s3://bucket/notes.csv was replaced while it was read" in said


@pytest.mark.long
def test_a_script_ends_that_leaves_an_object_in_the_middle(s3: S3) -> None:
    url = s3.put("notes.csv", lines(b""))
    s3.latency = LATENCY

    for code, said in ended("-c", FIRST_ROW, url, times=2):
        assert (code, said) == (3, "")


def parquet(table: pa.Table) -> bytes:
    """A Parquet file that is cut off within its rows: its end is there."""
    out = io.BytesIO()
    pa.parquet.write_table(table, out, row_group_size=5_000, compression="none")
    data = out.getvalue()
    return data[:3_000_000] + b"\xff" * 2_000_000 + data[5_000_000:]


def arrow(table: pa.Table) -> bytes:
    """An Arrow file with a batch that is none."""
    out = io.BytesIO()
    with pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=5_000)
    data = out.getvalue()
    return data[:3_000_000] + b"\xff" * 2_000_000 + data[5_000_000:]


def stream(table: pa.Table) -> bytes:
    """An Arrow stream that is cut off."""
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=5_000)
    return out.getvalue()[:9_000_000]


def ndjson(table: pa.Table) -> bytes:
    """An NDJSON file with a line that is no JSON."""
    rows = [orjson.dumps(row) for row in table.to_pylist()]
    return b"\n".join([*rows[:20_000], b"{", *rows[20_000:]])


@pytest.mark.long
def test_a_script_ends_after_errors_in_objects_of_all_other_formats(s3: S3) -> None:
    table = pa.table({"id": [str(i) for i in range(80_000)], "text": [f"text {i} {PAD}" for i in range(80_000)]})
    damaged = {
        "a.parquet": parquet(table),
        "b.arrow": arrow(table),
        "c.arrow": stream(table),
        "d.ndjson": ndjson(table),
        "e.ndjson.gz": gzip.compress(ndjson(table), 1),
    }
    urls = [s3.put(name, data) for name, data in damaged.items()]
    s3.latency = LATENCY

    for code, said in ended("-c", EACH, *urls, times=2):
        assert code == 3, said
        assert [line.partition(": ")[0].split()[0] for line in said.splitlines()] == urls
