"""Compile and fill in Jinja2 templates over a row's columns, in a sandbox. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from functools import cache
from typing import Any, Literal
from uuid import UUID

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, Undefined, nodes, pass_environment
from jinja2.exceptions import SecurityError
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipeline.errors import RowProblem
from pipeline.job.json_values import Unprintable, json_default, json_text

RESERVED = frozenset({"row", "vars"})  # our own names in a template; a column of such a name is written row["row"]


class TemplateProblem(Exception):
    """A template does not compile, or is not allowed to run. The message gives the reason and the template's line."""


@dataclass(frozen=True)
class Names:
    """The names that a template reads.

    columns, variables: the columns and vars that are written out. all_columns: whether it also reads columns whose
    names it computes, so that it may need any column. functions: of Jinja, like `range`.
    """

    columns: frozenset[str]
    variables: frozenset[str]
    all_columns: bool
    functions: frozenset[str] = frozenset()


def is_template(text: str) -> bool:
    """Return whether the text contains Jinja syntax."""
    return "{{" in text or "{%" in text or "{#" in text


def is_jinja_name(name: str) -> bool:
    """Return whether a bare name in a template means something of Jinja's or ours, and not the column of that name."""
    return name in RESERVED or name in _environment("invalid").globals or name in _JINJA_NAMES


#: Keywords of Jinja, and names that Jinja defines in every template.
_JINJA_NAMES = frozenset(
    [
        "true",
        "false",
        "none",
        "True",
        "False",
        "None",
        "not",
        "and",
        "or",
        "in",
        "is",
        "if",
        "else",
        "loop",
        "self",
        "super",
        "caller",
        "varargs",
        "kwargs",
    ]
)


def is_method(name: str) -> bool:
    """Return whether Python's dict has a method of this name, so that a reader may take `row.NAME` for the method."""
    return hasattr(dict, name)


def names(template: str) -> Names:
    """Return the names that a template reads.

    Raises TemplateProblem if it does not compile, or uses what the sandbox forbids.
    """
    environment = _environment("invalid")
    try:
        tree = environment.parse(template)
        _refuse_escapes(tree)
        _refuse_unknown(tree, environment)
        _refuse_jinja_objects(tree)
        environment.from_string(template)
    except TemplateSyntaxError as exc:
        raise TemplateProblem(f"line {exc.lineno} of the template: {exc.message}") from exc
    bare = find_undeclared_variables(tree) - environment.globals.keys()
    rows, row_constants = _reads_of(tree, "row")
    variables, variable_constants = _reads_of(tree, "vars")
    if variables > len(variable_constants):
        raise TemplateProblem("the name of a var must be written out; write {{ vars.NAME }}")
    return Names(
        columns=frozenset(bare - RESERVED) | frozenset(row_constants),
        variables=frozenset(variable_constants),
        all_columns="row" in bare and rows > len(row_constants),
        functions=frozenset({node.name for node in tree.find_all(nodes.Name)} & environment.globals.keys()),
    )


def renderer(
    template: str, variables: Mapping[str, Any], nulls: Literal["invalid", "empty"]
) -> Callable[[Mapping[str, Any]], str]:
    """Return a function that renders the template for a row: from column name to value, to the text.

    variables: values of vars. nulls: whether a printed null is an error ("invalid") or an empty text ("empty").
    The function raises RowProblem for a row that cannot be rendered (a null is printed, a filter fails), and
    TemplateProblem if the sandbox stops the template.
    """
    compiled = _environment(nulls).from_string(template)
    fixed = {**compiled.globals, "vars": dict(variables)}
    compiled.globals = {}  # `fixed` has them; Jinja would merge them a second time for each row

    def render(row: Mapping[str, Any]) -> str:
        # does what `compiled.render(row)` does, without its copies of globals and row, a third of its time
        context = compiled.new_context({**fixed, **row, "row": row, "vars": fixed["vars"]}, shared=True)
        try:
            return "".join(compiled.root_render_func(context))
        except SecurityError as exc:
            raise TemplateProblem(f"the template is not allowed to do this: {exc}") from exc
        except _NotAValue as exc:
            raise RowProblem(f"the template prints {exc}") from None
        except _NullPrinted:
            empty = ", ".join(name for name, value in row.items() if value is None)
            raise RowProblem(f"the template prints a null; null in this row: {empty}") from None
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as exc:
            raise RowProblem(f"the template fails for this row: {type(exc).__name__}: {exc}") from exc

    return _fast_renderer(template, variables, render) or render


def _fast_renderer(
    template: str, variables: Mapping[str, Any], render: Callable[[Mapping[str, Any]], str]
) -> Callable[[Mapping[str, Any]], str] | None:
    """Return a function that gives the same text as `render`, ten times as fast.

    None if the template has anything but text, columns and vars. It calls `render` for rows whose columns are missing,
    or hold other values than texts, numbers and booleans.
    """
    pattern, columns = "", list[str]()
    for node in _environment("invalid").parse(template).body:
        if not isinstance(node, nodes.Output):
            return None
        for part in node.nodes:
            kind, text = _output_part(part)
            if kind == "vars" and not isinstance(variables.get(text), str):
                return None
            if kind == "column":
                pattern += "%s"
                columns.append(text)
            elif kind is None:
                return None
            else:
                pattern += (text if kind == "text" else variables[text]).replace("%", "%%")
    if not columns:
        return None

    def fill(row: Mapping[str, Any]) -> str:
        try:
            values = tuple([row[column] for column in columns])
        except KeyError:
            return render(row)
        return pattern % values if _PLAIN_TYPES.issuperset(map(type, values)) else render(row)

    return fill


_PLAIN_TYPES = frozenset({str, int, float, bool})


def _output_part(node: nodes.Expr) -> tuple[Literal["text", "column", "vars", None], str]:
    """Return what a part of a template's output is: its kind, and its text or the name of the column or var.

    The kind is None for anything else.
    """
    if isinstance(node, nodes.TemplateData):
        return "text", node.data
    if isinstance(node, nodes.Name) and not is_jinja_name(node.name):
        return "column", node.name
    if isinstance(node, nodes.Getattr | nodes.Getitem) and isinstance(node.node, nodes.Name):
        name = node.attr if isinstance(node, nodes.Getattr) else _constant(node.arg)
        if isinstance(name, str) and node.node.name in RESERVED:
            return ("column" if node.node.name == "row" else "vars"), name
    return None, ""


def fill_vars(text: str, variables: Mapping[str, Any]) -> str:
    """`text` with its `{{ vars.x }}` filled in. Raises TemplateProblem for anything else it names."""
    if not is_template(text):
        return text
    named = names(text)
    if named.columns or named.all_columns:
        raise TemplateProblem(f"{', '.join(sorted(named.columns)) or 'row'} is not a var")
    unknown = named.variables - set(variables)
    if unknown:
        declared = ", ".join(variables) or "none"
        raise TemplateProblem(f"vars.{sorted(unknown)[0]} is not among the declared vars ({declared})")
    try:
        return renderer(text, variables, "invalid")({})
    except RowProblem as exc:
        raise TemplateProblem(str(exc)) from exc


class _NullPrinted(Exception):
    """A `{{ }}` printed a null."""


class _NotAValue(Exception):
    """A `{{ }}` printed something that is not a value: an object of Python or Jinja. The message names it."""


def _refuse_null(value: Any) -> Any:
    """Return the value in a form that can be printed. Raises _NullPrinted and _NotAValue."""
    if type(value) in _PLAIN_TYPES:
        return value
    if value is None:
        raise _NullPrinted
    return _printable(value)


def _null_as_empty(value: Any) -> Any:
    """Return the value in a form that can be printed, an empty text for a null. Raises _NotAValue."""
    return "" if value is None else _printable(value)


#: Types that a template may print. An Undefined raises its own error when it is printed.
_VALUE_TYPES = (str, int, float, Decimal, date, time, timedelta, bytes, UUID, list, tuple, dict, type(None), Undefined)


def _printable(value: Any) -> Any:
    """Return the value, or its JSON if it is a list or mapping.

    Raises _NotAValue if the value, or one inside it, is bytes, an object of Python or Jinja, or has no exact text.
    """
    if type(value) in _PLAIN_TYPES:
        return value
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, Unprintable):
            raise _NotAValue(f"a value that has no exact text: {item.reason}")
        if isinstance(item, bytes):
            raise _NotAValue("bytes, which only request.attachments can use; decode them in the source")
        if not isinstance(item, _VALUE_TYPES):
            kind = type(item).__name__
            hint = "; add |list" if hasattr(item, "__iter__") else ""
            raise _NotAValue(f"an object of Python's type {kind}, which is not a value{hint}")
        if isinstance(item, list | tuple):
            pending += item
        elif isinstance(item, dict):
            pending += item.values()
    return json_text(value) if isinstance(value, list | tuple | dict) else value


#: Filters that turn any value into text, so that their input must be printable.
_TEXT_FILTERS = frozenset(
    [
        "string",
        "upper",
        "lower",
        "capitalize",
        "title",
        "trim",
        "replace",
        "truncate",
        "indent",
        "center",
        "wordwrap",
        "wordcount",
        "format",
        "escape",
        "e",
        "forceescape",
        "safe",
        "striptags",
        "urlencode",
        "urlize",
    ]
)


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, where `row.items` is the column, `row.items()` is the method, and only values become text."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return the value of `obj.attribute` where it is not called: of a mapping the item, never the method."""
        if isinstance(obj, dict):
            if attribute in obj:
                return obj[attribute]
            return super().getattr(obj, attribute) if attribute.startswith("_") else self._missing(obj, attribute)
        value = super().getattr(obj, attribute)
        if callable(value) and not isinstance(value, Undefined) and isinstance(obj, _VALUE_TYPES):
            raise _NotAValue(f"{attribute!r}, which is a method of this value; write .{attribute}() to call it")
        return value

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return the value of `obj[argument]`: of a mapping the item, never the method."""
        if isinstance(obj, dict) and isinstance(argument, str) and not argument.startswith("_"):
            return obj[argument] if argument in obj else self._missing(obj, argument)
        return super().getitem(obj, argument)

    def _missing(self, obj: Any, name: str) -> Undefined:
        return self.undefined(obj=obj, name=name)

    def _generate(self, source: nodes.Template, *args: Any, **options: Any) -> str:
        """Return the template as Python code, after our changes to the parsed template; Jinja's hook for this."""
        for call in list(source.find_all(nodes.Call)):
            if isinstance(call.node, nodes.Getattr):
                call.node = _with_filter(call.node.node, _METHOD, nodes.Const(call.node.attr))
        for joined in list(source.find_all(nodes.Concat)):
            joined.nodes = [_with_filter(part, _PRINTABLE) for part in joined.nodes]
        for filtered in list(source.find_all(nodes.Filter)):
            if filtered.node is not None and filtered.name in _TEXT_FILTERS:
                filtered.node = _with_filter(filtered.node, _PRINTABLE)
        source.set_environment(self)
        return super()._generate(source, *args, **options)


#: Names of our own filters, which no template can write. As functions of the template they would be ten times slower.
_METHOD, _PRINTABLE = "the method", "the value"


def _with_filter(node: nodes.Expr, name: str, *args: nodes.Expr) -> nodes.Filter:
    """Return an expression that applies the filter `name` to the expression `node`."""
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


@pass_environment
def _method(environment: "_Environment", obj: Any, name: str) -> Any:
    """Return the value of `obj.name` in `obj.name()`: the method if there is one."""
    return super(_Environment, environment).getattr(obj, name)


@cache
def _environment(nulls: str) -> _Environment:
    """Return Jinja's environment for a job. nulls: see renderer."""
    finalize = _null_as_empty if nulls == "empty" else _refuse_null
    environment = _Environment(undefined=StrictUndefined, finalize=finalize, autoescape=False)
    environment.policies["json.dumps_kwargs"] = {
        "sort_keys": True,
        "default": json_default,
    }  # dates and decimals in tojson
    environment.filters |= {_METHOD: _method, _PRINTABLE: _printable}
    return environment


def _refuse_escapes(tree: nodes.Template) -> None:
    """Raise TemplateProblem for names and files outside of the sandbox, before any row is rendered or sent."""
    for other in tree.find_all((nodes.Include, nodes.Extends, nodes.Import, nodes.FromImport)):
        raise TemplateProblem(f"line {other.lineno} of the template: other files cannot be read from a template")
    for node in tree.find_all((nodes.Getattr, nodes.Getitem)):
        name = node.attr if isinstance(node, nodes.Getattr) else _constant(node.arg)  # type: ignore[attr-defined]
        if isinstance(name, str) and name.startswith("__"):
            raise TemplateProblem(f"line {node.lineno} of the template: {name} is not allowed in a template")


def _refuse_unknown(tree: nodes.Template, environment: ImmutableSandboxedEnvironment) -> None:
    """Raise TemplateProblem for unknown filters and tests: Jinja would fail at some row, after others were sent."""
    for node in tree.find_all((nodes.Filter, nodes.Test)):
        known, what = (environment.filters, "filter") if isinstance(node, nodes.Filter) else (environment.tests, "test")
        if node.name not in known:
            raise TemplateProblem(f"line {node.lineno} of the template: No {what} named {node.name!r}.")


def _refuse_jinja_objects(tree: nodes.Template) -> None:
    """Raise TemplateProblem if `self`, or `loop` in a loop, is printed: they are objects of Jinja, never columns."""
    in_loops = [output for loop in tree.find_all(nodes.For) for output in loop.find_all(nodes.Output)]
    printed = {id(part) for output in in_loops for part in output.nodes}
    block_references = {id(node.node) for node in tree.find_all(nodes.Getattr)}
    for node in tree.find_all(nodes.Name):
        if (node.name == "self" and id(node) not in block_references) or (node.name == "loop" and id(node) in printed):
            raise TemplateProblem(
                f"line {node.lineno} of the template: {node.name} is a word of Jinja; "
                f'for the column of that name write row["{node.name}"]'
            )


def _reads_of(tree: nodes.Template, name: str) -> tuple[int, set[str]]:
    """Return how often the variable `name` is read, and the names in it that the template writes out.

    The number counts each written-out name once: it is larger than their number only if other reads exist.
    """
    reads = sum(node.name == name and node.ctx == "load" for node in tree.find_all(nodes.Name))
    constants: list[str] = []
    called = {id(call.node) for call in tree.find_all(nodes.Call)}  # row.items() is not a column: it reads all columns
    for node in tree.find_all((nodes.Getattr, nodes.Getitem)):
        if id(node) in called and isinstance(node, nodes.Getattr):
            continue
        if isinstance(node.node, nodes.Name) and node.node.name == name:  # type: ignore[attr-defined]
            attribute = node.attr if isinstance(node, nodes.Getattr) else _constant(node.arg)  # type: ignore[attr-defined]
            if isinstance(attribute, str):
                constants.append(attribute)
    return reads - len(constants) + len(set(constants)), set(constants)


def _constant(node: nodes.Node) -> Any:
    """Return the value of a constant in a template; None for any other expression."""
    return node.value if isinstance(node, nodes.Const) else None
