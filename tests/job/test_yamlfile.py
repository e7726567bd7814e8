"""A job file is read literally, and its faults are reported with their line."""

import time
from typing import Any

import pytest

from pipeline.errors import JobError
from pipeline.job import yamlfile


def parsed(text: str) -> dict[str, Any]:
    return yamlfile.parse(text, "job.yaml")[0]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        pytest.param("yes", "yes", id="yes"),
        pytest.param("no", "no", id="no"),
        pytest.param("on", "on", id="on"),
        pytest.param("off", "off", id="off"),
        pytest.param("y", "y", id="y"),
        pytest.param("2026-11-20", "2026-11-20", id="a date"),
        pytest.param("2026-11-20T10:00:00Z", "2026-11-20T10:00:00Z", id="a time"),
        pytest.param("12:30", "12:30", id="minutes and seconds"),
        pytest.param("01234", "01234", id="leading zero"),
        pytest.param("00", "00", id="two zeros"),
        pytest.param("-01", "-01", id="leading zero behind a sign"),
        pytest.param("1_000", "1_000", id="underscore among digits"),
        pytest.param("1,000", "1,000", id="comma among digits"),
        pytest.param("'5'", "5", id="a quoted number"),
        pytest.param('"true"', "true", id="a quoted truth"),
        pytest.param("''", "", id="quoted nothing"),
        pytest.param("'null'", "null", id="a quoted null"),
        pytest.param(".", ".", id="a dot"),
        pytest.param("claude-haiku-4-5", "claude-haiku-4-5", id="a model"),
        pytest.param("4.5.1", "4.5.1", id="a version"),
        pytest.param("|\n  5\n", "5\n", id="a block"),
        pytest.param('"\\u00e4\\n"', "ä\n", id="escapes"),
    ],
)
def test_text_stays_text(written: str, value: str) -> None:
    fields = parsed(f"field: {written}")

    assert fields == {"field": value}
    assert isinstance(fields["field"], str)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        pytest.param("0", 0, id="zero"),
        pytest.param("300", 300, id="a whole number"),
        pytest.param("-5", -5, id="a negative number"),
        pytest.param("+5", 5, id="a plus sign"),
        pytest.param("0.2", 0.2, id="a fraction"),
        pytest.param(".5", 0.5, id="a fraction without zero"),
        pytest.param("1e3", 1000.0, id="an exponent"),
        pytest.param("true", True, id="true"),
        pytest.param("false", False, id="false"),
        pytest.param("null", None, id="null"),
        pytest.param("~", None, id="tilde"),
        pytest.param("", None, id="nothing"),
    ],
)
def test_numbers_truths_and_nulls_are_what_yaml_1_2_says(written: str, value: object) -> None:
    fields = parsed(f"field: {written}")

    assert fields == {"field": value}
    assert type(fields["field"]) is type(value)


@pytest.mark.parametrize("written", ["e5", "E10", ".e5", "-e5", "e-3"])
def test_a_word_that_looks_like_an_exponent_without_a_number_stays_text(written: str) -> None:
    assert parsed(f"labels: [{written}, other]") == {"labels": [written, "other"]}


def test_nested_fields_keep_their_order_and_kinds() -> None:
    fields = parsed("b: [1, {c: x}]\na:\n  - yes\n  - d: 2.5\n")

    assert fields == {"b": [1, {"c": "x"}], "a": ["yes", {"d": 2.5}]}
    assert list(fields) == ["b", "a"]


def test_each_field_has_its_line() -> None:
    text = "name: a\n\nsource:\n  path:\n    - x.csv\n    - y.csv\n  key: id  # comment\n"

    _, lines = yamlfile.parse(text, "job.yaml")

    assert lines[("name",)] == 1
    assert lines[("source",)] == 3
    assert lines[("source", "path")] == 4
    assert lines[("source", "path", 1)] == 6
    assert lines[("source", "key")] == 7


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param(
            "a: 1\nb: 2\na: 3\n", "job.yaml line 3: field 'a' is given twice (first on line 1)", id="at the top"
        ),
        pytest.param(
            "s:\n  k: 1\n  k: 1\n", "job.yaml line 3: field 'k' is given twice (first on line 2)", id="inside"
        ),
        pytest.param("s: {k: 1, k: 2}\n", "job.yaml line 1: field 'k' is given twice", id="on one line"),
        pytest.param(
            "l:\n- k: 1\n  'k': 2\n", "job.yaml line 3: field 'k' is given twice", id="in a list, once quoted"
        ),
    ],
)
def test_a_field_that_is_given_twice_is_refused_with_both_lines(text: str, said: str) -> None:
    with pytest.raises(JobError) as refused:
        parsed(text)

    assert said in str(refused.value)
    assert "remove one" in str(refused.value)


def test_the_same_field_in_two_sections_is_no_duplicate() -> None:
    assert parsed("a: {k: 1}\nb: {k: 2}") == {"a": {"k": 1}, "b": {"k": 2}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("a:\n\tb: 1\n", "job.yaml line 2, column 1: this is not valid YAML", id="tab as indentation"),
        pytest.param("a: [1, 2\n", "job.yaml line 2, column 1: this is not valid YAML", id="open bracket"),
        pytest.param("a: b: c\n", "job.yaml line 1, column 5: this is not valid YAML", id="two colons"),
        pytest.param("a: 1\n b: 2\n", "job.yaml line 2", id="crooked indentation"),
        pytest.param("a: 'x\n", "this is not valid YAML", id="open quote"),
        pytest.param("a: *b\n", "job.yaml line 1", id="alias of nothing"),
        pytest.param("a: 1\n---\nb: 2\n", "job.yaml line 2", id="two documents"),
        pytest.param("a: \x01\n", "job.yaml: this is not valid YAML", id="control character"),
        pytest.param("", "job.yaml: a job file is a mapping of fields", id="nothing"),
        pytest.param("# only a comment\n", "a job file is a mapping of fields", id="a comment"),
        pytest.param("- a\n- b\n", "a job file is a mapping of fields", id="a list"),
        pytest.param("just text", "a job file is a mapping of fields", id="a text"),
        pytest.param("? [a, b]\n: 1\n", "job.yaml line 1: a field's name must be text", id="a list as a name"),
    ],
)
def test_text_that_is_not_a_job_file_is_refused_with_its_line(text: str, said: str) -> None:
    with pytest.raises(JobError) as refused:
        parsed(text)

    assert said in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a: &x [*x]\n", id="an alias inside of its own anchor"),
        pytest.param(f"a: {'9' * 5000}\n", id="a number of 5000 digits"),
    ],
)
def test_an_impossible_value_is_refused_without_a_crash(text: str) -> None:
    with pytest.raises(JobError, match=r"job\.yaml line 1"):
        parsed(text)


def test_an_alias_repeats_the_value_of_its_anchor() -> None:
    assert parsed("a: &x {k: 1}\nb: *x\n") == {"a": {"k": 1}, "b": {"k": 1}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("a: 1\nprompt: {{ text }}\n", 'line 2: YAML reads .*: prompt: "{{ text }}"$', id="alone"),
        pytest.param(
            "prompt: {{ text }} and more\n", 'line 1: .*: prompt: "{{ text }} and more"$', id="with text behind"
        ),
        pytest.param(
            "prompt: {% if x %}y{% endif %}", 'line 1: .*: prompt: "{% if x %}y{% endif %}"$', id="a statement"
        ),
        pytest.param(
            'prompt: {{ row["a b"] }}\n', """line 1: .*: prompt: '{{ row\\["a b"\\] }}'$""", id="with quotes inside"
        ),
        pytest.param("s:\n  path: {{ vars.d }}/a.csv\n", 'line 2: .*: path: "{{ vars.d }}/a.csv"$', id="a path"),
        pytest.param("s:\n  - {{ vars.d }}\n", 'line 2: .*: - "{{ vars.d }}"$', id="in a list"),
        pytest.param("s: [{{ vars.d }}]\n", "line 1: .*put the text into quotes", id="in a list on one line"),
    ],
)
def test_braces_without_quotes_are_refused_with_the_quoted_text(text: str, said: str) -> None:
    with pytest.raises(JobError, match=f"^job.yaml {said}"):
        parsed(text)


@pytest.mark.parametrize(
    "text", ["p: Hello {{ name }}", "p: |\n  {{ name }}\n", "p: '{{ name }}'", "p: >-\n  {% x %}\n"]
)
def test_braces_within_a_text_need_no_quotes(text: str) -> None:
    assert set(parsed(text)) == {"p"}


def test_a_text_with_a_colon_is_refused_with_the_hint_to_quote_it() -> None:
    with pytest.raises(JobError, match="a text with a colon needs quotes"):
        parsed("prompt: Sort-{{ x }}: now\n")


def test_a_mapping_as_a_field_name_is_not_taken_for_a_template() -> None:
    with pytest.raises(JobError, match="line 1: a field's name must be text"):
        parsed("{{a: b}: c}\n".replace("{{", "{ {"))


ALIASES = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param(ALIASES, "more than 100,000 values", id="aliases of aliases"),
        pytest.param("a: " + "[" * 5000, "more than 50 levels", id="brackets left open"),
        pytest.param("a: " + "[" * 5000 + "]" * 5000, "more than 50 levels", id="brackets"),
        pytest.param("a: " + "{" * 5000, "more than 50 levels", id="braces"),
        pytest.param("".join(" " * i + "a:\n" for i in range(1500)), "more than 50 levels", id="blocks"),
        pytest.param("a:\n " + "- " * 5000 + "x", "more than 50 levels", id="lists"),
    ],
)
def test_a_file_that_would_take_all_memory_or_time_is_refused_at_once(text: str, said: str) -> None:
    started = time.process_time()

    with pytest.raises(JobError, match=said):
        parsed(text)

    assert time.process_time() - started < 3  # much less; the parser needs 5 s and more for thousands of levels
