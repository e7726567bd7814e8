"""Which columns a template reads, what it prints for a row, and what it may not do."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any, Literal

import pytest

from pipeline.errors import RowProblem
from pipeline.job import templates
from pipeline.job.templates import TemplateProblem, fill_vars, names, renderer

Nulls = Literal["invalid", "empty"]


def text_of(template: str, row: dict[str, Any], nulls: Nulls = "invalid", **variables: object) -> str:
    return renderer(template, variables, nulls)(row)


@pytest.mark.parametrize(
    ("template", "columns", "variables"),
    [
        pytest.param("plain text", set(), set(), id="nothing"),
        pytest.param("{{ subject }}: {{ body }}", {"subject", "body"}, set(), id="by name"),
        pytest.param("{{ row[\"any name\"] }}{{ row['x'] }}", {"any name", "x"}, set(), id="by a written-out name"),
        pytest.param("{{ row.body }}", {"body"}, set(), id="as an attribute of row"),
        pytest.param("{{ row['row'] }}{{ row['vars'] }}", {"row", "vars"}, set(), id="columns called row and vars"),
        pytest.param("{{ vars.day }}{{ vars['tone'] }}", set(), {"day", "tone"}, id="vars"),
        pytest.param("{{ row.a }}{{ row.a }}{{ vars.b }}{{ vars.b }}", {"a"}, {"b"}, id="the same ones twice"),
        pytest.param("{% if a %}{{ b }}{% else %}{{ c }}{% endif %}", {"a", "b", "c"}, set(), id="in branches"),
        pytest.param("{% for x in items %}{{ x }}{{ loop.index }}{% endfor %}", {"items"}, set(), id="in a loop"),
        pytest.param("{% set x = a %}{{ x }}", {"a"}, set(), id="by way of a name of its own"),
        pytest.param("{{ a|upper|default(b) }}", {"a", "b"}, set(), id="in filters"),
        pytest.param("{{ person.name }}", {"person"}, set(), id="a field of a column"),
        pytest.param(
            "{# {{ hidden }} #}{% raw %}{{ raw }}{% endraw %}", set(), set(), id="not in comments or raw text"
        ),
        pytest.param("{{ range(3)|join }}{{ dict(a=b) }}", {"b"}, set(), id="not the functions of Jinja"),
        pytest.param("{{ größe }}{{ 名前 }}", {"größe", "名前"}, set(), id="in any script"),
    ],
)
def test_a_template_reads_the_columns_and_vars_that_it_names(
    template: str, columns: set[str], variables: set[str]
) -> None:
    named = names(template)

    assert named.columns == columns
    assert named.variables == variables
    assert not named.all_columns


@pytest.mark.parametrize(
    ("template", "columns"),
    [
        pytest.param("{{ row[which] }}", {"which"}, id="by the name in another column"),
        pytest.param("{{ row['a' ~ b] }}", {"b"}, id="by a name put together"),
        pytest.param("{{ row }}", set(), id="the row as a whole"),
        pytest.param("{% for name in row %}{{ name }}{% endfor %}", set(), id="all of them in a loop"),
        pytest.param("{{ row['a'] }}{{ row|length }}", {"a"}, id="one by name, and the row as a whole"),
        pytest.param("{% set r = row %}{{ r.a }}", set(), id="under another name"),
    ],
)
def test_a_template_that_looks_columns_up_row_by_row_reads_all_of_them(template: str, columns: set[str]) -> None:
    named = names(template)

    assert named.all_columns
    assert named.columns == columns


@pytest.mark.parametrize("template", ["{{ vars[which] }}", "{{ vars }}", "{% for v in vars %}{% endfor %}"])
def test_a_var_must_be_written_out(template: str) -> None:
    with pytest.raises(TemplateProblem, match=r"write \{\{ vars\.NAME \}\}"):
        names(template)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        pytest.param("{{ body", "line 1 of the template", id="braces left open"),
        pytest.param("a\nb {% if x %}\n", "of the template", id="an if without its end"),
        pytest.param("a\n\n{% wrong %}", "line 3 of the template: Encountered unknown tag 'wrong'", id="unknown tag"),
        pytest.param("a\n{{ a b }}", "line 2 of the template", id="two names"),
        pytest.param("{{ }}", "line 1 of the template", id="nothing to print"),
        pytest.param(
            "a\n{{ x|nofilter }}",
            "No filter named 'nofilter'",
            id="an unknown filter",
        ),
        pytest.param(
            "{% if x is notest %}{% endif %}",
            "No test named 'notest'",
            id="an unknown test",
        ),
    ],
)
def test_a_template_that_does_not_compile_is_refused_with_its_line(template: str, said: str) -> None:
    with pytest.raises(TemplateProblem) as refused:
        names(template)

    assert said in str(refused.value)


@pytest.mark.parametrize(
    "template",
    [
        pytest.param("{{ body.__class__ }}", id="an attribute"),
        pytest.param("{{ body['__class__'] }}", id="an item"),
        pytest.param("{{ row.__class__.__mro__ }}", id="of the row"),
        pytest.param("{{ ''.__class__.__subclasses__() }}", id="of a text"),
        pytest.param("{{ cycler.__init__.__globals__ }}", id="of a function of Jinja"),
        pytest.param("{% set x = body.__dict__ %}", id="in a statement"),
        pytest.param("{% if false %}{{ body.__class__ }}{% endif %}", id="where no row would ever get to"),
    ],
)
def test_a_template_that_reaches_inside_python_is_refused_before_any_row(template: str) -> None:
    with pytest.raises(TemplateProblem, match=r"__\w+__ is not allowed in a template"):
        names(template)


@pytest.mark.parametrize(
    "template",
    [
        pytest.param("{{ body|attr('__class__') }}", id="by the filter attr"),
        pytest.param("{{ body['__cla' ~ 'ss__'] }}", id="by a name put together"),
        pytest.param("{{ body|attr('__cla' ~ 'ss__') }}", id="by attr and a name put together"),
        pytest.param("{{ row[which] if false else body[which] }}", id="by a name from a column"),
        pytest.param("{{ '{0.__class__}'.format(body) }}", id="by a format text"),
        pytest.param("{{ '{x.__class__}'.format_map({'x': body}) }}", id="by a format map"),
        pytest.param("{{ ([body]|map(attribute='__class__')|list)[0] }}", id="by map"),
    ],
)
def test_the_sandbox_stops_what_the_check_of_the_template_misses(template: str) -> None:
    with pytest.raises(TemplateProblem, match="not allowed"):
        text_of(template, {"body": "x", "which": "__class__"})


def test_text_of_a_row_is_never_run_as_a_template() -> None:
    assert text_of("{{ body }}", {"body": "{{ 7 * 7 }}{% x %}"}) == "{{ 7 * 7 }}{% x %}"


def test_a_template_cannot_change_a_row() -> None:
    row = {"tags": ["a"]}

    with pytest.raises(TemplateProblem, match="not allowed"):
        text_of("{{ tags.append('b') }}", row)

    assert row == {"tags": ["a"]}


@pytest.mark.parametrize(
    ("template", "row", "text"),
    [
        pytest.param("<t>{{ a }}</t>", {"a": "<&\"'>"}, "<t><&\"'></t>", id="nothing is escaped"),
        pytest.param("{{ a }}", {"a": "  x\n"}, "  x\n", id="blanks of a value stay"),
        pytest.param("{{ a }} {{ b }} {{ c }}", {"a": 17, "b": 1.5, "c": True}, "17 1.5 True", id="numbers"),
        pytest.param("{{ row['a b'] }}", {"a b": "x"}, "x", id="a name with a blank"),
        pytest.param("{{ row['row'] }}", {"row": "x"}, "x", id="a column called row"),
        pytest.param("{{ row[which] }}", {"which": "a", "a": "x"}, "x", id="a name from a column"),
        pytest.param("{{ range }}", {"range": "x"}, "x", id="a column called like a function of Jinja"),
        pytest.param("{% for t in tags %}{{ t }};{% endfor %}", {"tags": ["a", "b"]}, "a;b;", id="a loop"),
        pytest.param("{{ a|upper|truncate(3, True, '', 0) }}", {"a": "abcdef"}, "ABC", id="filters"),
        pytest.param("{{ tags|join(', ') }}", {"tags": ["a", "b"]}, "a, b", id="join"),
        pytest.param("{{ p.name }}", {"p": {"name": "x"}}, "x", id="a field of a column"),
        pytest.param("{% if a %}yes{% else %}no{% endif %}", {"a": ""}, "no", id="an empty text is not true"),
        pytest.param("{{ a or '(none)' }}", {"a": ""}, "(none)", id="or, for an empty text"),
        pytest.param("line\n", {}, "line", id="one last newline of the template goes"),
    ],
)
def test_a_row_becomes_text(template: str, row: dict[str, Any], text: str) -> None:
    assert text_of(template, row) == text


def test_vars_are_printed_beside_columns() -> None:
    assert text_of("{{ vars.tone }}: {{ tone }}", {"tone": "mine"}, tone="calm") == "calm: mine"


def test_a_printed_null_makes_the_row_invalid_and_names_the_null_columns() -> None:
    with pytest.raises(RowProblem, match=r"prints a null; null in this row: b, c$"):
        text_of("{{ a }}{{ b }}", {"a": "x", "b": None, "c": None})


def test_a_printed_null_is_empty_with_nulls_empty() -> None:
    assert text_of("<{{ a }}>", {"a": None}, nulls="empty") == "<>"


@pytest.mark.parametrize("nulls", ["invalid", "empty"])
@pytest.mark.parametrize(
    ("template", "text"),
    [
        pytest.param("{% if a %}yes{% else %}no{% endif %}", "no", id="if"),
        pytest.param("{{ a or 'none' }}", "none", id="or"),
        pytest.param("{{ a is none }}", "True", id="is none"),
        pytest.param("{{ a|default('none', true) }}", "none", id="default"),
    ],
)
def test_a_null_that_is_not_printed_is_no_problem(nulls: Nulls, template: str, text: str) -> None:
    assert text_of(template, {"a": None}, nulls) == text


@pytest.mark.parametrize(
    ("template", "row", "said"),
    [
        pytest.param("{{ nope }}", {"a": 1}, "'nope' is undefined", id="a name that the row lacks"),
        pytest.param("{{ row['nope'] }}", {"a": 1}, "nope", id="a lookup that the row lacks"),
        pytest.param("{{ a.nope }}", {"a": "x"}, "no attribute 'nope'", id="a field that the value lacks"),
        pytest.param("{{ a + 1 }}", {"a": "x"}, "TypeError", id="text plus number"),
        pytest.param("{{ 1 // a }}", {"a": 0}, "ZeroDivisionError", id="division by zero"),
        pytest.param("{{ range(a)|list }}", {"a": 10**7}, "Range too big", id="a range without end"),
        pytest.param("{{ a|tojson }}", {"a": object()}, "TypeError", id="a value that is no JSON"),
    ],
)
def test_a_row_that_cannot_be_rendered_says_why(template: str, row: dict[str, Any], said: str) -> None:
    with pytest.raises(RowProblem) as problem:
        text_of(template, row)

    assert said in str(problem.value)


@pytest.mark.parametrize("template", ["{% include 'x' %}", "{% extends 'x' %}", "{% import 'x' as y %}"])
def test_a_template_that_reads_other_files_is_refused(template: str) -> None:
    with pytest.raises(TemplateProblem):
        names(template)


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        pytest.param("no braces", "no braces", id="nothing to fill"),
        pytest.param("dt={{ vars.day }}/x", "dt=2026-11-20/x", id="a var"),
        pytest.param("{{ vars.n }}", "3", id="a number"),
        pytest.param("{% if vars.n > 2 %}many{% endif %}", "many", id="a condition"),
        pytest.param("{# comment #}x", "x", id="a comment"),
        pytest.param("{{ vars.day[:4] }}", "2026", id="a part of a var"),
    ],
)
def test_vars_are_filled_into_a_text(text: str, filled: str) -> None:
    assert fill_vars(text, {"day": "2026-11-20", "n": 3}) == filled


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("{{ vars.dya }}", r"vars\.dya is not among the declared vars \(day\)", id="a misspelt var"),
        pytest.param("{{ day }}", "day is not a var", id="a bare name"),
        pytest.param("{{ row.a }}", "a is not a var", id="a column"),
        pytest.param("{{ row[vars.day] }}", "row is not a var", id="a column by a var"),
        pytest.param("{{ vars.day", "line 1 of the template", id="braces left open"),
        pytest.param("{{ vars.day.__class__ }}", "__class__ is not allowed", id="a way out"),
        pytest.param("{{ vars.day + 1 }}", "the template fails", id="text plus number"),
    ],
)
def test_a_text_that_names_anything_but_vars_is_refused(text: str, said: str) -> None:
    with pytest.raises(TemplateProblem, match=said):
        fill_vars(text, {"day": "x"})


# -- items and methods -----------------------------------------------------------------------------------------------

METHODS = ["clear", "copy", "fromkeys", "get", "items", "keys", "pop", "popitem", "setdefault", "update", "values"]


def test_the_tested_method_names_are_all_methods_of_a_mapping() -> None:
    assert [name for name in dir(dict) if not name.startswith("_")] == METHODS


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "template", ["{{ row.NAME }}", "{{ row['NAME'] }}", "{{ NAME }}", "{{ order.NAME }}", "{{ order['NAME'] }}"]
)
def test_a_column_or_field_named_like_a_method_is_printed(template: str, method: str) -> None:
    row = {method: "apple", "order": {method: "apple"}}

    for end in ("", "{% if true %}{% endif %}"):  # filled in by us, and by Jinja
        assert text_of(template.replace("NAME", method) + end, row) == "apple"


@pytest.mark.parametrize("template", ["{{ order.values }}", "{{ order['values'] }}", "{{ row.values }}"])
def test_a_missing_field_is_not_taken_for_a_method(template: str) -> None:
    with pytest.raises(RowProblem, match="has no attribute 'values'"):
        text_of(template, {"order": {"a": 1}})


def test_a_missing_field_is_not_true() -> None:
    assert text_of("{% if order.values is defined %}yes{% else %}no{% endif %}", {"order": {"a": 1}}) == "no"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        pytest.param("{% for k, v in order.items() %}{{ k }}={{ v }};{% endfor %}", "items=x;b=2;", id="items"),
        pytest.param("{{ order.keys()|join(',') }}", "items,b", id="keys"),
        pytest.param("{{ order.get('b') }}{{ order.get('c', 0) }}", "20", id="get"),
        pytest.param("{{ a.upper() }}{{ tags.count('a') }}", "X1", id="of a text and a list"),
        pytest.param("{{ '%s-{}'.format(a) }}", "%s-x", id="format"),
    ],
)
def test_a_method_is_called_whatever_the_fields_are(template: str, text: str) -> None:
    assert text_of(template, {"order": {"items": "x", "b": 2}, "a": "x", "tags": ["a", "b"]}) == text


def test_a_template_that_calls_a_method_of_the_row_reads_all_columns() -> None:
    named = names("{% for name, value in row.items() %}{{ name }}: {{ value }}{% endfor %}")

    assert named.all_columns
    assert named.columns == frozenset()


@pytest.mark.parametrize("nulls", ["invalid", "empty"])
@pytest.mark.parametrize(
    ("template", "said"),
    [
        pytest.param("{{ a.upper }}", "'upper', which is a method of this value; write .upper()", id="a method"),
        pytest.param("{{ tags.count ~ '' }}", "'count', which is a method", id="a method as part of a text"),
        pytest.param("{{ [a.upper]|join }}", "'upper', which is a method", id="a method in a list"),
        pytest.param("{{ a|attr('upper') }}", "'upper', which is a method", id="a method by a filter"),
        pytest.param("{{ order.keys() }}", "type dict_keys, which is not a value; add |list", id="keys"),
        pytest.param("{{ tags|map('upper') }}", "type generator, which is not a value; add |list", id="a generator"),
        pytest.param("{{ tags|map('upper')|string }}", "type generator", id="a generator as a text"),
        pytest.param("{{ tags|map('upper') ~ a }}", "type generator", id="a generator before a text"),
        pytest.param("{{ range }}", "type function", id="a function of Jinja"),
        pytest.param("{{ lipsum }}", "type function", id="another function of Jinja"),
        pytest.param("{{ range(3) }}", "type range, which is not a value; add |list", id="a range"),
        pytest.param("{% macro m() %}{% endmacro %}{{ m }}", "type Macro", id="a macro"),
        pytest.param("{{ namespace(a=1) }}", "type Namespace", id="a namespace"),
        pytest.param("{% for x in tags %}{{ [loop] }}{% endfor %}", "type LoopContext", id="a loop in a list"),
        pytest.param("{{ {'k': [range]} }}", "type function", id="a function in a mapping"),
        pytest.param("{{ thing }}", "type object", id="an object of Python in a row"),
        pytest.param("{{ order.thing }}", "type object", id="an object of Python in a field"),
        pytest.param("{{ order }}", "type object", id="an object of Python in a printed mapping"),
    ],
)
def test_an_object_that_is_not_a_value_is_not_printed(template: str, said: str, nulls: Nulls) -> None:
    row = {"a": "x", "tags": ["a"], "order": {"thing": object()}, "thing": object()}

    with pytest.raises(RowProblem) as problem:
        text_of(template, row, nulls)

    assert said in str(problem.value)


@pytest.mark.parametrize(
    ("template", "word"),
    [
        pytest.param("{{ self }}", "self", id="self"),
        pytest.param("{% if self %}x{% endif %}", "self", id="self in a condition"),
        pytest.param("{% for x in tags %}{{ loop }}{% endfor %}", "loop", id="loop in a loop"),
    ],
)
def test_printing_self_or_loop_is_refused_before_any_row(template: str, word: str) -> None:
    with pytest.raises(TemplateProblem, match=rf'line 1 .*{word} is a word of Jinja.*write row\["{word}"\]'):
        names(template)


@pytest.mark.parametrize("name", ["self", "loop", "range", "row", "vars"])
def test_a_column_named_like_a_word_of_jinja_is_read_as_an_item_of_row(name: str) -> None:
    assert text_of(f'{{{{ row["{name}"] }}}}', {name: "x"}) == "x"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        pytest.param("{{ a ~ none ~ 1 }}", "xNone1", id="a null put together with a text"),
        pytest.param("{{ tags }}{{ order }}", '["a",1.5]{"k":null}', id="a list and a mapping"),
        pytest.param("{% block b %}x{% endblock %}{{ self.b() }}", "xx", id="a block twice"),
        pytest.param("{% macro m(v) %}<{{ v }}>{% endmacro %}{{ m(a) }}", "<x>", id="a macro that is called"),
        pytest.param("{% for x in tags %}{{ loop.index }}{{ loop.cycle('a', 'b') }}{% endfor %}", "1a2b", id="loop"),
        pytest.param("{{ tags|map('string')|join('/')|upper }}", "A/1.5", id="a generator that is joined"),
        pytest.param("{{ loop }}", "col", id="a column called loop, in no loop"),
    ],
)
def test_templates_render_the_same_text_as_in_older_versions(template: str, text: str) -> None:
    assert text_of(template, {"a": "x", "tags": ["a", 1.5], "order": {"k": None}, "loop": "col"}) == text


# -- columns and texts only: filled in without Jinja -----------------------------------------------------------------


@pytest.mark.parametrize("nulls", ["invalid", "empty"])
@pytest.mark.parametrize(
    "row",
    [
        pytest.param({"a": "x", "b": "100%s", "c c": "{{ a }}", "items": "col"}, id="texts"),
        pytest.param({"a": 1, "b": 2.5, "c c": True, "items": ""}, id="numbers and a truth"),
        pytest.param({"a": None, "b": "", "c c": "", "items": "i"}, id="a null"),
        pytest.param({"a": [1], "b": {"k": "é"}, "c c": b"x", "items": Decimal("1.50")}, id="other values"),
    ],
)
@pytest.mark.parametrize(
    "template",
    [
        "{{ a }} %s 100% {{ b }}",
        "{{ row['c c'] }}{{a}}\n",
        "{{ row.b }}{# no text #}{{- a -}} ",
        "{{ row.items }}",
        "{{ row.keys }}{{ a }}",
        "{{ row['copy'] }}",
        "{{ vars.v }}{{ a }}",
        "{{ vars['n'] }}{{ a }}",
        "{{ 'text' }}{{ a }}",
        "{% raw %}{{ a }}{% endraw %}{{ a }}",
        "{{ a }}{{ missing }}",
        "{{ a }}{{ row['missing'] }}",
        "{{ a | upper }}",
        "{% if a %}{{ a }}{% endif %}",
    ],
)
def test_the_fast_renderer_gives_the_same_text_as_jinja(
    monkeypatch: pytest.MonkeyPatch, template: str, row: dict[str, Any], nulls: Nulls
) -> None:
    filled = said_by(renderer(template, {"v": "50%", "n": 5}, nulls), row)

    monkeypatch.setattr(templates, "_fast_renderer", lambda *_: None)

    assert filled == said_by(renderer(template, {"v": "50%", "n": 5}, nulls), row)


def said_by(render: Callable[[dict[str, Any]], str], row: dict[str, Any]) -> str:
    try:
        return render(row)
    except RowProblem as exc:
        return str(exc)
