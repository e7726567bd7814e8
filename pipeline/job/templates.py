"""Jinja2 templates over a row's columns: which columns they name, and their text for a row. Sandboxed."""

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
from pipeline.job.json_values import Unfit, json_text, plain

RESERVED = frozenset({"row", "vars"})  # in a template these two words are ours; a column of that name is row["row"]


class TemplateProblem(Exception):
    """A template that does not compile, or must not run. The message says what and on which of its lines."""


@dataclass(frozen=True)
class Names:
    """What a template reads. all_columns: it looks columns up by a name that only the row decides."""

    columns: frozenset[str]
    variables: frozenset[str]
    all_columns: bool
    functions: frozenset[str] = frozenset()  #: Jinja's own, like range


def is_template(text: str) -> bool:
    """Whether anything in the text would be filled in."""
    return "{{" in text or "{%" in text or "{#" in text


def is_taken(name: str) -> bool:
    """Whether a bare name in a template is not the column of that name: ours, a function, or a word of Jinja's."""
    return name in RESERVED or name in _environment("invalid").globals or name in _WORDS


#: Words of Jinja's language, and names that Jinja itself defines in every template.
_WORDS = frozenset(
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
    """Whether a mapping of Python's has a method of this name: then `row.NAME` reads as if it were that method."""
    return hasattr(dict, name)


def names(template: str) -> Names:
    """The columns and vars that `template` names. Raises TemplateProblem if it does not compile or reaches inside."""
    environment = _environment("invalid")
    try:
        tree = environment.parse(template)
        _refuse_escapes(tree)
        _refuse_unknown(tree, environment)
        _refuse_own_words(tree)
        environment.from_string(template)
    except TemplateSyntaxError as exc:
        raise TemplateProblem(f"line {exc.lineno} of the template: {exc.message}") from exc
    bare = find_undeclared_variables(tree) - environment.globals.keys()
    rows, row_constants = _lookups(tree, "row")
    variables, variable_constants = _lookups(tree, "vars")
    if variables > len(variable_constants):
        raise TemplateProblem("vars is read by a name that is not written out; write {{ vars.NAME }}")
    return Names(
        columns=frozenset(bare - RESERVED) | frozenset(row_constants),
        variables=frozenset(variable_constants),
        all_columns="row" in bare and rows > len(row_constants),
        functions=frozenset({node.name for node in tree.find_all(nodes.Name)} & environment.globals.keys()),
    )


def renderer(
    template: str, variables: Mapping[str, Any], nulls: Literal["invalid", "empty"]
) -> Callable[[Mapping[str, Any]], str]:
    """A function from a row (column name to value) to the template's text.

    It raises RowProblem for a row that cannot be rendered (a null where a value is printed, a filter that fails),
    and TemplateProblem when the sandbox stops the template.
    """
    compiled = _environment(nulls).from_string(template)
    fixed = {**compiled.globals, "vars": dict(variables)}
    compiled.globals = {}  # they come with each row's values; here Jinja would go through them once more for each row

    def render(row: Mapping[str, Any]) -> str:
        # `compiled.render(row)` in its parts, without its copies of globals and row: they took a third of the time
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

    return _filler(template, variables, render) or render


def _filler(
    template: str, variables: Mapping[str, Any], render: Callable[[Mapping[str, Any]], str]
) -> Callable[[Mapping[str, Any]], str] | None:
    """The same text as `render` gives, ten times as fast; None for a template that is more than text and columns.

    Rows with other values than texts, numbers and truths are left to `render`.
    """
    pattern, columns = "", list[str]()
    for node in _environment("invalid").parse(template).body:
        if not isinstance(node, nodes.Output):
            return None
        for part in node.nodes:
            kind, text = _part(part)
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
        return pattern % values if _PLAIN.issuperset(map(type, values)) else render(row)

    return fill


_PLAIN = frozenset({str, int, float, bool})


def _part(node: nodes.Expr) -> tuple[Literal["text", "column", "vars", None], str]:
    """What a part of an output is: a text as it stands, the name of a column or of a var, or (None) anything else."""
    if isinstance(node, nodes.TemplateData):
        return "text", node.data
    if isinstance(node, nodes.Name) and not is_taken(node.name):
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
        raise TemplateProblem(f"{', '.join(sorted(named.columns)) or 'row'} is not known here")
    unknown = named.variables - set(variables)
    if unknown:
        declared = ", ".join(variables) or "none"
        raise TemplateProblem(f"vars.{sorted(unknown)[0]} is not among the declared vars ({declared})")
    try:
        return renderer(text, variables, "invalid")({})
    except RowProblem as exc:
        raise TemplateProblem(str(exc)) from exc


class _NullPrinted(Exception):
    """A `{{ }}` came to None."""


class _NotAValue(Exception):
    """A `{{ }}` came to an object of Python or Jinja. The message names it, and says what to write."""


def _refuse_null(value: Any) -> Any:
    if type(value) in _PLAIN:
        return value
    if value is None:
        raise _NullPrinted
    return _printable(value)


def _null_as_empty(value: Any) -> Any:
    return "" if value is None else _printable(value)


#: What a template may print. An Undefined says itself what is wrong.
_VALUES = (str, int, float, Decimal, date, time, timedelta, bytes, UUID, list, tuple, dict, type(None), Undefined)


def _printable(value: Any) -> Any:
    """`value` itself, a list or mapping as JSON.

    Raises _NotAValue if its text, or that of a value inside, is the name of a Python object, or is not exact.
    """
    if type(value) in _PLAIN:
        return value
    inside = [value]
    while inside:
        one = inside.pop()
        if isinstance(one, Unfit):
            raise _NotAValue(f"a value that has no exact text: {one.reason}")
        if isinstance(one, bytes):
            raise _NotAValue("bytes, which are for request.attachments: decode them in the source")
        if not isinstance(one, _VALUES):
            kind = type(one).__name__
            hint = "; add |list" if hasattr(one, "__iter__") else ""
            raise _NotAValue(f"an object of Python's type {kind}, which is no value{hint}")
        if isinstance(one, list | tuple):
            inside += one
        elif isinstance(one, dict):
            inside += one.values()
    return json_text(value) if isinstance(value, list | tuple | dict) else value


#: Filters that make a text of whatever they get.
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
    """Jinja, where `row.items` is the column and `row.items()` the method, and only values become text."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        """What `obj.attribute` is where nothing calls it: of a mapping its item, never its method."""
        if isinstance(obj, dict):
            if attribute in obj:
                return obj[attribute]
            return super().getattr(obj, attribute) if attribute.startswith("_") else self._missing(obj, attribute)
        value = super().getattr(obj, attribute)
        if callable(value) and not isinstance(value, Undefined) and isinstance(obj, _VALUES):
            raise _NotAValue(f"{attribute!r}, which is a method of this value: write .{attribute}() to call it")
        return value

    def getitem(self, obj: Any, argument: Any) -> Any:
        """What `obj[argument]` is: of a mapping its item, never its method."""
        if isinstance(obj, dict) and isinstance(argument, str) and not argument.startswith("_"):
            return obj[argument] if argument in obj else self._missing(obj, argument)
        return super().getitem(obj, argument)

    def _missing(self, obj: Any, name: str) -> Undefined:
        return self.undefined(obj=obj, name=name)

    def _generate(self, source: nodes.Template, *args: Any, **options: Any) -> str:
        """The template as Python code. Jinja offers this method for changes to the parsed template."""
        for call in list(source.find_all(nodes.Call)):
            if isinstance(call.node, nodes.Getattr):
                call.node = _filtered(call.node.node, _METHOD, nodes.Const(call.node.attr))
        for joined in list(source.find_all(nodes.Concat)):
            joined.nodes = [_filtered(part, _PRINTABLE) for part in joined.nodes]
        for filtered in list(source.find_all(nodes.Filter)):
            if filtered.node is not None and filtered.name in _TEXT_FILTERS:
                filtered.node = _filtered(filtered.node, _PRINTABLE)
        source.set_environment(self)
        return super()._generate(source, *args, **options)


#: Filters of ours, by names that no template can write. What a template calls by name would take ten times as long.
_METHOD, _PRINTABLE = "the method", "the value"


def _filtered(node: nodes.Expr, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


@pass_environment
def _method(environment: "_Environment", obj: Any, name: str) -> Any:
    """What `obj.name` is in `obj.name()`: the method, if there is one."""
    return super(_Environment, environment).getattr(obj, name)


@cache
def _environment(nulls: str) -> _Environment:
    finalize = _null_as_empty if nulls == "empty" else _refuse_null
    environment = _Environment(undefined=StrictUndefined, finalize=finalize, autoescape=False)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "default": plain}  # dates and decimals in tojson
    environment.filters |= {_METHOD: _method, _PRINTABLE: _printable}
    return environment


def _refuse_escapes(tree: nodes.Template) -> None:
    """Names that begin with an underscore lead out of the sandbox; say so before anything is rendered or sent."""
    for other in tree.find_all((nodes.Include, nodes.Extends, nodes.Import, nodes.FromImport)):
        raise TemplateProblem(f"line {other.lineno} of the template: other files cannot be read from a template")
    for node in tree.find_all((nodes.Getattr, nodes.Getitem)):
        name = node.attr if isinstance(node, nodes.Getattr) else _constant(node.arg)  # type: ignore[attr-defined]
        if isinstance(name, str) and name.startswith("__"):
            raise TemplateProblem(f"line {node.lineno} of the template: {name} is not allowed in a template")


def _refuse_unknown(tree: nodes.Template, environment: ImmutableSandboxedEnvironment) -> None:
    """Jinja finds out only when it comes to them: for some row, after others have been sent."""
    for node in tree.find_all((nodes.Filter, nodes.Test)):
        known, what = (environment.filters, "filter") if isinstance(node, nodes.Filter) else (environment.tests, "test")
        if node.name not in known:
            raise TemplateProblem(f"line {node.lineno} of the template: No {what} named {node.name!r}.")


def _refuse_own_words(tree: nodes.Template) -> None:
    """Refuse to print `self`, and `loop` in a loop: they are objects of Jinja's, whatever columns there are."""
    in_loops = [output for loop in tree.find_all(nodes.For) for output in loop.find_all(nodes.Output)]
    printed = {id(part) for output in in_loops for part in output.nodes}
    of_blocks = {id(node.node) for node in tree.find_all(nodes.Getattr)}
    for node in tree.find_all(nodes.Name):
        if (node.name == "self" and id(node) not in of_blocks) or (node.name == "loop" and id(node) in printed):
            raise TemplateProblem(
                f"line {node.lineno} of the template: {node.name} is a word of Jinja's; "
                f'for the column of that name write row["{node.name}"]'
            )


def _lookups(tree: nodes.Template, name: str) -> tuple[int, set[str]]:
    """How many times the variable `name` is read, and the written-out names it is looked up by."""
    reads = sum(node.name == name and node.ctx == "load" for node in tree.find_all(nodes.Name))
    constants: list[str] = []
    called = {id(call.node) for call in tree.find_all(nodes.Call)}  # row.items() is no column, and reads them all
    for node in tree.find_all((nodes.Getattr, nodes.Getitem)):
        if id(node) in called and isinstance(node, nodes.Getattr):
            continue
        if isinstance(node.node, nodes.Name) and node.node.name == name:  # type: ignore[attr-defined]
            attribute = node.attr if isinstance(node, nodes.Getattr) else _constant(node.arg)  # type: ignore[attr-defined]
            if isinstance(attribute, str):
                constants.append(attribute)
    # Reads are counted, constants are a set: hand back as many reads as are not explained by a constant plus the set.
    return reads - len(constants) + len(set(constants)), set(constants)


def _constant(node: nodes.Node) -> Any:
    return node.value if isinstance(node, nodes.Const) else None
