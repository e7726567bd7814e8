"""A first job file names each column so that its template prints the column's value."""

from datetime import date
from pathlib import Path

from pipeline.cli.first_job import write_job_file
from pipeline.job import templates
from pipeline.job.load import load

WORDS = ["items", "keys", "get", "self", "loop", "range", "row", "vars", "caller", "none", "a b"]


def test_a_column_named_like_a_method_or_keyword_of_jinja_is_printed_by_its_template(tmp_path: Path) -> None:
    data = tmp_path / "odd.csv"
    data.write_text(f"id,plain,{','.join(WORDS)}\n1,value of plain,{','.join(f'value of {word}' for word in WORDS)}\n")

    written = write_job_file(str(data), tmp_path / "odd.yaml", "claude-haiku-4-5")

    prompt = load(written, variables={}, today=date(2026, 11, 20)).request.prompt
    assert prompt is not None
    text = templates.renderer(prompt, {}, "invalid")({word: f"value of {word}" for word in ["plain", *WORDS]})
    assert [f">value of {word}</" in text for word in WORDS] == [True] * len(WORDS)
    assert all(f'row["{word}"]' in prompt for word in WORDS)
    assert "{{ plain if plain" in prompt
