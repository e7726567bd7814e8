"""A schema gives columns, answers give their values, and schemas that the API would refuse are refused first."""

import datetime
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from pipeline.answer.schema import Property, Reader, Reading, columns
from pipeline.emulator.model.schema import schema_problem
from pipeline.job.json_schema import SchemaProblem
from pipeline.job.pydantic_schema import schema_of_model
from pipeline.job.schema_rules import FORMATS, first_problem

TEXT = {"type": "string"}
DATE = {"type": "string", "format": "date"}
DATETIME = {"type": "string", "format": "date-time"}
INTEGER = {"type": "integer"}
NULL = {"type": "null"}


def an_object(**properties: Any) -> dict[str, Any]:
    """A schema as structured outputs take it: with these properties, each of them required."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def with_defs(schema: dict[str, Any], **defs: Any) -> dict[str, Any]:
    return schema | {"$defs": defs}


ADDRESS = an_object(city=TEXT, zip=TEXT, since=DATE)
INVOICE = an_object(name=TEXT, total={"type": "number"}, lines={"type": "array", "items": TEXT}, address=ADDRESS)


# -- columns ---------------------------------------------------------------------------------------------------------


def test_each_property_is_a_column_in_the_schemas_order() -> None:
    assert columns(INVOICE, {}) == {
        "name": Property(("name",), "text"),
        "total": Property(("total",), "number"),
        "lines": Property(("lines",), "json"),
        "address": Property(("address",), "json"),
    }
    assert list(columns(INVOICE, {})) == ["name", "total", "lines", "address"]


def test_a_renamed_property_keeps_its_place_and_a_nested_one_comes_after_all() -> None:
    found = columns(INVOICE, {"address.city": "city", "total": "invoice_total", "address.since": "since"})

    assert list(found) == ["name", "invoice_total", "lines", "address", "city", "since"]
    assert found["invoice_total"] == Property(("total",), "number")
    assert found["city"] == Property(("address", "city"), "text")
    assert found["since"] == Property(("address", "since"), "date")


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        pytest.param(TEXT, "text", id="string"),
        pytest.param(DATE, "date", id="date"),
        pytest.param(DATETIME, "datetime", id="date-time"),
        pytest.param({"type": "string", "format": "email"}, "text", id="another format"),
        pytest.param(INTEGER, "integer", id="integer"),
        pytest.param({"type": "number"}, "number", id="number"),
        pytest.param({"type": "boolean"}, "boolean", id="boolean"),
        pytest.param({"type": "array", "items": TEXT}, "json", id="array"),
        pytest.param(ADDRESS, "json", id="object"),
        pytest.param({"type": ["integer", "null"]}, "integer", id="a type or null"),
        pytest.param({"anyOf": [NULL, DATE]}, "date", id="one of null and another"),
        pytest.param({"oneOf": [INTEGER, NULL]}, "integer", id="exactly one of null and another"),
        pytest.param({"type": ["integer", "number"]}, "number", id="both kinds of number"),
        pytest.param({"anyOf": [DATE, TEXT]}, "text", id="a date or any text"),
        pytest.param({"type": ["string", "integer"]}, "json", id="text or number"),
        pytest.param({"anyOf": [TEXT, ADDRESS]}, "json", id="text or object"),
        pytest.param({"type": ["string", "null"], "anyOf": [{"format": "date"}, {}]}, "text", id="a type for branches"),
        pytest.param({"enum": ["a", "b"]}, "text", id="texts to choose from"),
        pytest.param({"enum": ["a", None]}, "text", id="texts or null to choose from"),
        pytest.param({"enum": [1, 2]}, "integer", id="integers to choose from"),
        pytest.param({"enum": [1, 2.5]}, "number", id="numbers to choose from"),
        pytest.param({"enum": [True, False]}, "boolean", id="booleans to choose from"),
        pytest.param({"enum": ["a", 1]}, "json", id="a mixture to choose from"),
        pytest.param({"const": "a"}, "text", id="a constant"),
        pytest.param({"type": "string", "enum": ["a"]}, "text", id="a type and values to choose from"),
        pytest.param({"$ref": "#/$defs/when"}, "datetime", id="a reference"),
        pytest.param({"$ref": "#/$defs/again", "description": "x"}, "datetime", id="a reference to a reference"),
        pytest.param({"$ref": "#/$defs/a~1b%20c"}, "boolean", id="a reference with an escaped name"),
        pytest.param({"anyOf": [{"$ref": "#/$defs/when"}, NULL]}, "datetime", id="a reference or null"),
        pytest.param({"allOf": [{"$ref": "#/$defs/when"}]}, "datetime", id="all of one"),
        pytest.param({}, "json", id="anything"),
        pytest.param(True, "json", id="true"),
        pytest.param(NULL, "json", id="null alone"),
    ],
)
def test_a_propertys_schema_decides_its_columns_kind(schema: Any, kind: str) -> None:
    defs = {"when": DATETIME, "again": {"$ref": "#/$defs/when"}, "a/b c": {"type": "boolean"}}

    assert columns(with_defs(an_object(x=schema), **defs), {})["x"].kind == kind


@pytest.mark.parametrize(
    "address",
    [
        pytest.param({"anyOf": [ADDRESS, NULL]}, id="an object or null"),
        pytest.param({"$ref": "#/$defs/address"}, id="a reference"),
        pytest.param({"anyOf": [NULL, {"$ref": "#/$defs/address"}]}, id="null or a reference"),
        pytest.param({"allOf": [{"$ref": "#/$defs/address"}, {"description": "x"}]}, id="all of several"),
        pytest.param({"anyOf": [ADDRESS, an_object(city=TEXT)]}, id="one of two objects"),
        pytest.param({"properties": {"city": TEXT}}, id="an object without its type"),
    ],
)
def test_a_nested_property_is_found_wherever_its_object_is_described(address: Any) -> None:
    schema = with_defs(an_object(address=address), address=ADDRESS)

    assert columns(schema, {"address.city": "city"})["city"] == Property(("address", "city"), "text")


def test_a_schema_that_is_a_reference_as_a_whole_has_the_columns_of_its_object() -> None:
    assert list(columns({"$ref": "#/$defs/A", "$defs": {"A": ADDRESS}}, {})) == ["city", "zip", "since"]


def test_a_property_with_a_dot_in_its_name_can_be_renamed() -> None:
    assert columns(an_object(**{"a.b": TEXT}), {"a.b": "ab"}) == {"ab": Property(("a.b",), "text")}


@pytest.mark.parametrize(
    ("schema", "renames", "said"),
    [
        pytest.param(
            {"type": "array", "items": TEXT},
            {},
            "the schema must be an object with properties; each becomes a column",
            id="a list",
        ),
        pytest.param(
            {"type": "object"}, {}, "the schema must be an object with properties; each becomes a column", id="empty"
        ),
        pytest.param(
            INVOICE,
            {"adress.city": "city"},
            "'adress.city': the schema has no property 'adress'; did you mean 'address'?",
            id="a misspelt rename",
        ),
        pytest.param(
            INVOICE,
            {"quantity": "n"},
            "'quantity': the schema has no property 'quantity'; it has name, total, lines, address",
            id="an unknown rename",
        ),
        pytest.param(
            INVOICE,
            {"address.town": "city"},
            "'address.town': 'address' has no property 'town'; it has city, zip, since",
            id="an unknown nested rename",
        ),
        pytest.param(
            INVOICE,
            {"name.first": "first"},
            "'name.first': 'name' is not an object with properties",
            id="through a text",
        ),
        pytest.param(
            an_object(a={"anyOf": [ADDRESS, TEXT]}),
            {"a.city": "city"},
            "'a.city': 'a' is not an object with properties",
            id="through what may be a text",
        ),
        pytest.param(
            an_object(Total=TEXT, total=TEXT),
            {},
            "properties 'Total' and 'total' both have the column 'total'; "
            "give one of them another name in output.columns",
            id="two names that differ in case",
        ),
        pytest.param(
            INVOICE,
            {"address.city": "NAME"},
            "properties 'name' and 'address.city' both have the column 'NAME'; "
            "give one of them another name in output.columns",
            id="a rename to what there is",
        ),
        pytest.param(
            an_object(**{"": TEXT}),
            {},
            "property '' has no name for its column; give it one in output.columns",
            id="no name",
        ),
        pytest.param(
            an_object(a={"$ref": "#/$defs/A"}),
            {},
            "'#/$defs/A' names nothing in the schema",
            id="a reference to nothing",
        ),
        pytest.param(
            with_defs(an_object(a={"$ref": "#/$defs/A"}), A={"anyOf": [{"$ref": "#/$defs/A"}, NULL]}),
            {},
            "'#/$defs/A' refers to itself",
            id="a reference to itself",
        ),
    ],
)
def test_a_schema_that_gives_no_columns_is_refused(schema: Any, renames: dict[str, str], said: str) -> None:
    with pytest.raises(SchemaProblem) as problem:
        columns(schema, renames)

    assert str(problem.value) == said


# -- what the API refuses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schema",
    [
        pytest.param(INVOICE, id="nested objects"),
        pytest.param(an_object(a={"type": "array", "items": TEXT, "minItems": 1}), id="a list of one or more"),
        pytest.param(an_object(a={"anyOf": [TEXT, NULL]}), id="a union"),
        pytest.param(an_object(a={"enum": ["a", 1, None, True]}), id="values to choose from"),
        pytest.param(an_object(a={"const": "a"}), id="a constant"),
        pytest.param(
            with_defs(an_object(a={"$ref": "#/$defs/A"}, b={"$ref": "#/$defs/A"}), A=ADDRESS), id="references"
        ),
        pytest.param({"$ref": "#/$defs/A", "$defs": {"A": ADDRESS}}, id="a reference as a whole"),
        pytest.param(an_object(minimum=TEXT, oneOf=TEXT, required=TEXT), id="properties with the names of keywords"),
        pytest.param(
            an_object(a=TEXT) | {"title": "T", "$schema": "x", "examples": [1], "x-note": 1}, id="annotations"
        ),
        pytest.param(an_object(a=TEXT) | {"required": []}, id="an optional property"),
        *[pytest.param(an_object(a={"type": "string", "format": name}), id=f"format {name}") for name in FORMATS],
    ],
)
def test_a_supported_schema_passes_here_and_at_the_emulator(schema: dict[str, Any]) -> None:
    assert first_problem(schema) is None
    assert schema_problem(schema) is None


DESCRIBE = "say it in the description"
NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
RECURSIVE = with_defs(an_object(a={"$ref": "#/$defs/A"}), A=an_object(next={"$ref": "#/$defs/A"}))
OPTIONAL = {f"a{i}": TEXT for i in range(25)}
UNIONS = {f"a{i}": {"type": ["string", "null"]} for i in range(17)}


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        *[
            pytest.param(
                an_object(a={"type": "number", word: 1}),
                f"properties.a.{word}: structured outputs do not support `{word}`; {DESCRIBE}",
                id=f"a number's {word}",
            )
            for word in NUMBERS
        ],
        *[
            pytest.param(
                an_object(a={"type": "string", word: 1}),
                f"properties.a.{word}: structured outputs do not support `{word}`; {DESCRIBE}",
                id=f"a text's {word}",
            )
            for word in ("minLength", "maxLength")
        ],
        *[
            pytest.param(
                an_object(a={"type": "array", "items": TEXT, word: value}),
                f"properties.a.{word}: structured outputs do not support `{word}`; {DESCRIBE}",
                id=f"a list's {word}",
            )
            for word, value in (("maxItems", 3), ("uniqueItems", True), ("contains", {}))
        ],
        *[
            pytest.param(
                an_object() | {word: value},
                f"{word}: structured outputs do not support `{word}`; {DESCRIBE}",
                id=f"an object's {word}",
            )
            for word, value in (
                ("minProperties", 1),
                ("maxProperties", 1),
                ("patternProperties", {}),
                ("propertyNames", {}),
            )
        ],
        pytest.param(
            an_object(a={"type": "array", "items": TEXT, "minItems": 2}),
            f"properties.a.minItems: structured outputs support only 0 or 1 (it is 2); {DESCRIBE}",
            id="a list of two or more",
        ),
        pytest.param(
            an_object(a={"type": "array", "items": {"type": "integer", "minimum": 0}}),
            f"properties.a.items.minimum: structured outputs do not support `minimum`; {DESCRIBE}",
            id="inside of a list",
        ),
        pytest.param(
            an_object(a={"anyOf": [NULL, {"type": "integer", "minimum": 0}]}),
            f"properties.a.anyOf.1.minimum: structured outputs do not support `minimum`; {DESCRIBE}",
            id="inside of a union",
        ),
        pytest.param(
            with_defs(an_object(a={"$ref": "#/$defs/A"}), A={"type": "integer", "minimum": 0}),
            f"$defs.A.minimum: structured outputs do not support `minimum`; {DESCRIBE}",
            id="behind a reference",
        ),
        pytest.param(
            an_object(a={"type": "object", "properties": {}}),
            "properties.a.additionalProperties: must be present and false on each object of structured outputs",
            id="an object that says nothing of other properties",
        ),
        pytest.param(
            an_object(a=TEXT) | {"additionalProperties": TEXT},
            "additionalProperties: must be false on each object of structured outputs",
            id="an object that takes other properties",
        ),
        pytest.param(
            an_object(a={"oneOf": [TEXT, NULL]}),
            "properties.a.oneOf: structured outputs do not support `oneOf`; write anyOf",
            id="oneOf",
        ),
        *[
            pytest.param(
                an_object(a=TEXT) | {word: {}},
                f"{word}: structured outputs do not support `{word}`; {DESCRIBE}",
                id=word,
            )
            for word in ("not", "if", "then", "else", "dependentSchemas")
        ],
        pytest.param(
            an_object(a=True),
            "properties.a: structured outputs need a mapping here (it is true)",
            id="a boolean as a schema",
        ),
        pytest.param(
            RECURSIVE,
            "$defs.A.properties.next.$ref: structured outputs do not support recursion, and #/$defs/A contains itself; "
            "write out as many levels as you need",
            id="recursion",
        ),
        pytest.param(
            with_defs(an_object(a={"$ref": "#/$defs/Lines"}), Line=TEXT),
            "properties.a.$ref: '#/$defs/Lines' names nothing in the schema; did you mean '#/$defs/Line'?",
            id="a reference to nothing",
        ),
        pytest.param(
            an_object(**OPTIONAL) | {"required": []},
            "structured outputs support at most 24 optional properties; name more of them in `required`",
            id="too many optional properties",
        ),
        pytest.param(
            an_object(**UNIONS),
            "structured outputs support at most 16 unions (anyOf, or a list of types); give some of them a single type",
            id="too many unions",
        ),
        pytest.param([], "the schema must be a mapping (it is [])", id="no mapping"),
    ],
)
def test_an_unsupported_schema_is_refused_here_and_at_the_emulator(schema: Any, said: str) -> None:
    assert first_problem(schema) == said
    assert schema_problem(schema) is not None


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        pytest.param(
            an_object(a={"$ref": "https://example.com/a"}),
            "properties.a.$ref: 'https://example.com/a' points outside of the schema; "
            "copy its target to $defs, and write #/$defs/...",
            id="a reference to elsewhere",
        ),
        pytest.param(
            an_object(a={"$ref": "#line"}), "properties.a.$ref: '#line' names nothing in the schema", id="an anchor"
        ),
        pytest.param(
            with_defs(an_object(a={"$ref": "#/$defs/A"}), A={"$ref": "#/$defs/A"}),
            "properties.a.$ref: '#/$defs/A' refers to itself",
            id="a reference to itself",
        ),
        pytest.param(
            with_defs(an_object(a={"allOf": [{"$ref": "#/$defs/A"}]}), A=TEXT),
            "properties.a.allOf.0.$ref: structured outputs do not support `$ref` inside of allOf; "
            "write the $ref instead of the allOf",
            id="a reference inside of allOf",
        ),
        pytest.param(
            an_object(a={"type": "array", "prefixItems": [TEXT, INTEGER]}),
            "properties.a.prefixItems: structured outputs do not support `prefixItems`; "
            "make it an object with a property for each position",
            id="a tuple",
        ),
        pytest.param(
            an_object(a={"type": "string", "format": "phone"}),
            "properties.a.format: structured outputs do not support the format 'phone' "
            "(known: date, date-time, duration, email, hostname, ipv4, ipv6, time, uri, uuid); "
            "say it in the description",
            id="an unknown format",
        ),
        pytest.param(
            an_object(a={"enum": ["a", [1]]}),
            "properties.a.enum: structured outputs support only texts, numbers, booleans and null here (not [1])",
            id="a list to choose",
        ),
        pytest.param(
            an_object(a={"const": {}}),
            "properties.a.const: structured outputs support only texts, numbers, booleans and null here (not {})",
            id="an object as a constant",
        ),
        pytest.param(
            an_object(a={"enum": []}), "properties.a.enum: must contain at least one value", id="nothing to choose"
        ),
        pytest.param(
            an_object(name=TEXT) | {"required": ["nam"]},
            "required: there is no property 'nam'; did you mean 'name'?",
            id="a misspelt required property",
        ),
        pytest.param(
            an_object(a=TEXT | {"enums": ["a"]}),
            "properties.a.enums: JSON Schema has no such keyword; did you mean 'enum'?",
            id="a misspelt keyword",
        ),
    ],
)
def test_an_unsupported_schema_that_the_emulator_accepts_is_refused_here(schema: Any, said: str) -> None:
    assert first_problem(schema) == said


@pytest.mark.parametrize(
    ("pattern", "feature"),
    [
        pytest.param(r"^(?=a)", "lookahead", id="lookahead"),
        pytest.param(r"^(?!a)", "lookahead", id="negative lookahead"),
        pytest.param(r"(?<=a)b", "lookbehind", id="lookbehind"),
        pytest.param(r"(?<!a)b", "lookbehind", id="negative lookbehind"),
        pytest.param(r"(a)\1", "backreference", id="backreference"),
        pytest.param(r"\bword", "word boundary", id="word boundary"),
        pytest.param(r"[\]]\b", "word boundary", id="word boundary after a class with a bracket"),
        pytest.param(r"^[A-Z]{2}\d{4}$", None, id="classes and counts"),
        pytest.param(r"^(a|b)+\.(?:c)?$", None, id="groups"),
        pytest.param(r"\\b", None, id="a backslash before a b"),
        pytest.param(r"[(?=]", None, id="marks of a lookahead in a class"),
    ],
)
def test_patterns_pass_but_for_unsupported_features(pattern: str, feature: str | None) -> None:
    said = f"properties.a.pattern: structured outputs do not support {feature} in a pattern; say it in the description"

    assert first_problem(an_object(a={"type": "string", "pattern": pattern})) == (said if feature else None)


@pytest.mark.parametrize("strict", [True, False], ids=["structured outputs", "a tool"])
@pytest.mark.parametrize(
    ("schema", "said"),
    [
        pytest.param(
            an_object(a={"type": "strng"}),
            "properties.a.type: JSON Schema has no type 'strng'; did you mean 'string'?",
            id="a misspelt type",
        ),
        pytest.param(
            an_object(a={"type": "x"}), "properties.a.type: JSON Schema has no type 'x'", id="an unknown type"
        ),
        pytest.param({"type": "object", "properties": ["a"]}, "properties: ['a'] is not of type 'object'", id="a list"),
        pytest.param(
            {"type": "object", "required": "a"}, "required: 'a' is not of type 'array'", id="a text as a list"
        ),
        pytest.param(an_object(a=5), "properties.a: 5 is not of type 'object', 'boolean'", id="a number as a schema"),
        pytest.param(
            an_object(a={"type": "string", "pattern": "("}),
            "properties.a.pattern: '(' is not a valid regular expression of JSON Schema",
            id="a broken pattern",
        ),
        pytest.param(
            an_object(a={"type": "string", "pattern": "a\\Z"}),
            "properties.a.pattern: 'a\\\\Z' is not a valid regular expression of JSON Schema",
            id="a pattern that only Python knows",
        ),
        pytest.param(
            {"type": "object", "properties": {1: TEXT}},
            "the schema cannot be sent as JSON: Dict key must be str",
            id="a number as a name",
        ),
    ],
)
def test_an_invalid_json_schema_is_refused_for_every_use(schema: Any, said: str, strict: bool) -> None:
    assert first_problem(schema, strict=strict) == said


def test_an_ordinary_tool_allows_what_structured_outputs_do_not_support() -> None:
    tool = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 0}, "b": {"oneOf": [TEXT, NULL]}}}

    assert first_problem(tool, strict=False) is None
    assert first_problem(RECURSIVE, strict=False) is None


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        pytest.param({"type": "array"}, "(it is 'array')", id="a list"),
        pytest.param({"properties": {"a": TEXT}}, "(it is None)", id="no type"),
    ],
)
def test_a_tools_schema_must_be_an_object(schema: Any, said: str) -> None:
    assert first_problem(schema, strict=False) == f"type: the input_schema of a tool must be of type object {said}"


def test_a_reference_to_another_file_is_refused_for_a_tool_too() -> None:
    said = first_problem({"type": "object", "properties": {"a": {"$ref": "other.json"}}}, strict=False)

    assert said is not None
    assert said.startswith("properties.a.$ref: 'other.json' points outside of the schema")


# -- answers ---------------------------------------------------------------------------------------------------------


def test_an_answer_is_the_values_of_its_columns() -> None:
    reader = Reader(INVOICE, {"total": "invoice_total", "address.city": "city"})
    address = {"city": "Rome", "zip": "00100", "since": "2026-01-02"}

    read = reader.read({"name": "Ada", "total": 12, "lines": ["a", "b"], "address": address})

    left = {"zip": "00100", "since": "2026-01-02"}
    values = {"name": "Ada", "invoice_total": 12, "lines": ["a", "b"], "address": left, "city": "Rome"}
    assert read == Reading(values, None, {})
    assert address["city"] == "Rome"  # what was read is unchanged
    assert list(read.values) == list(reader.columns)


def test_an_answer_may_come_as_text() -> None:
    assert Reader(an_object(a=TEXT), {}).read_text('{"a": "é"}') == Reading({"a": "é"})


@pytest.mark.parametrize("text", ["", "Sure!", '{"a": ', '{"a": NaN}'], ids=["empty", "prose", "cut off", "no number"])
def test_a_text_that_is_not_json_is_a_problem(text: str) -> None:
    assert Reader(an_object(a=TEXT), {}).read_text(text) == Reading({"a": None}, "the answer is not JSON")


def test_a_missing_or_null_property_is_none() -> None:
    schema = an_object(address={"anyOf": [ADDRESS, NULL]}, day=DATE, when=DATETIME, n=INTEGER) | {"required": []}
    reader = Reader(schema, {"address.city": "city"})
    nothing = {"address": None, "day": None, "when": None, "n": None, "city": None}

    assert reader.read({}) == Reading(nothing)
    assert reader.read({"address": None}) == Reading(nothing)


@pytest.mark.parametrize(
    ("schema", "value", "read"),
    [
        pytest.param(INTEGER, 3.0, 3, id="a whole number with a point"),
        pytest.param(INTEGER, 2**63 - 1, 2**63 - 1, id="the largest integer"),
        pytest.param(INTEGER, -(2**63), -(2**63), id="the smallest integer"),
        pytest.param({"type": "number"}, 3, 3, id="an integer as a number"),
        pytest.param({"type": "boolean"}, False, False, id="false"),
        pytest.param(DATE, "2026-02-28", "2026-02-28", id="a date"),
        pytest.param(DATETIME, "2026-02-28T10:00:00Z", "2026-02-28T10:00:00Z", id="a time in UTC"),
        pytest.param(DATETIME, "2026-02-28T10:00:00.5+02:00", "2026-02-28T10:00:00.5+02:00", id="a time elsewhere"),
        pytest.param({"type": "array", "items": INTEGER}, [1, 2], [1, 2], id="a list"),
        pytest.param(TEXT, "", "", id="an empty text"),
    ],
)
def test_values_have_the_types_of_the_results_table(schema: Any, value: Any, read: Any) -> None:
    values = Reader(an_object(x=schema), {}).read({"x": value}).values

    assert values == {"x": read}
    assert type(values["x"]) is type(read)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        pytest.param({"total": "abc"}, "total: 'abc' is not of type 'number'", id="a wrong type"),
        pytest.param({}, "'total' is a required property", id="a missing property"),
        pytest.param(
            {"total": 1, "note": "x"},
            "Additional properties are not allowed ('note' was unexpected)",
            id="a property of its own",
        ),
        pytest.param({"total": 1, "n": 1.5}, "n: 1.5 is not of type 'integer'", id="no integer"),
        pytest.param({"total": 1, "n": True}, "n: True is not of type 'integer'", id="a truth as a number"),
        pytest.param(
            {"total": 1, "n": 2**63},
            "n: 9223372036854775808 does not fit into an integer column of 64 bits",
            id="an integer that no column holds",
        ),
        pytest.param(
            {"total": 1, "n": 1e20},
            "n: 1e+20 does not fit into an integer column of 64 bits",
            id="a large integer with an exponent",
        ),
        pytest.param({"total": 1, "day": "2026-02-30"}, "day: '2026-02-30' is not a date", id="a day that is none"),
        pytest.param(
            {"total": 1, "day": "2026-02-03T10:00:00Z"}, "day: '2026-02-03T10:00:00Z' is not a date", id="a time"
        ),
        pytest.param({"total": 1, "when": "tomorrow"}, "when: 'tomorrow' is not a date-time", id="prose for a time"),
        pytest.param(
            {"total": 1, "when": "0001-01-01T00:00:00+01:00"},
            "when: '0001-01-01T00:00:00+01:00' is not a date-time",
            id="a time that UTC does not have",
        ),
        pytest.param(
            {"total": 1, "kind": "bill"}, "kind: 'bill' is not one of ['Invoice', 'Order']", id="none of these"
        ),
        pytest.param(
            {"total": 1, "lines": [{"price": 1}, {"price": "2"}]},
            "lines.1.price: '2' is not of type 'number'",
            id="deep inside",
        ),
        pytest.param({"total": 1, "who": {"age": "x"}}, "who.age: 'x' is not of type 'integer'", id="in a union"),
        pytest.param([1], "[1] is not of type 'object'", id="a list"),
        pytest.param("x", "'x' is not of type 'object'", id="a text"),
        pytest.param(None, "None is not of type 'object'", id="null"),
    ],
)
def test_an_answer_that_the_schema_does_not_allow_is_a_problem_with_its_place(answer: Any, said: str) -> None:
    lines = {"type": "array", "items": an_object(price={"type": "number"})}
    properties = {
        "total": {"type": "number"},
        "n": INTEGER,
        "day": DATE,
        "when": DATETIME,
        "kind": {"type": "string", "enum": ["Invoice", "Order"]},
        "lines": lines,
        "who": {"anyOf": [an_object(age=INTEGER), NULL]},
    }
    reader = Reader(an_object(**properties) | {"required": ["total"]}, {})

    assert reader.read(answer) == Reading(dict.fromkeys(properties), said)


def test_a_nested_date_is_a_problem_with_its_path() -> None:
    reader = Reader(INVOICE, {"address.since": "since"})
    address = {"city": "Rome", "zip": "1", "since": "soon"}

    read = reader.read({"name": "a", "total": 1, "lines": [], "address": address})

    assert read.problem == "address.since: 'soon' is not a date"


def test_a_long_wrong_answer_is_cut_in_the_message() -> None:
    problem = Reader(an_object(total={"type": "number"}), {}).read({"total": "x" * 5000}).problem

    assert problem is not None
    assert problem.startswith("total: 'xxx")
    assert problem.endswith("xxx' is not of type 'number'")
    assert len(problem) < 320


def test_null_is_not_an_answer_even_if_the_schema_allows_it() -> None:
    reader = Reader(an_object(a=TEXT) | {"type": ["object", "null"]}, {})

    assert reader.read(None) == Reading({"a": None}, "the answer is not an object")


def test_a_pattern_that_the_two_validators_read_differently_is_still_explained() -> None:
    reader = Reader(an_object(a={"type": "string", "pattern": "^a$"}), {})  # for Python, $ is also before a last \n

    assert reader.read({"a": "a\n"}).problem == 'a: "a\\n" does not match "^a$"'


KIND = {"type": "string", "enum": ["Invoice", "Purchase Order"]}


@pytest.mark.parametrize(
    ("schema", "value", "read"),
    [
        pytest.param(KIND, "invoice", "Invoice", id="another case"),
        pytest.param(KIND, " Invoice\n", "Invoice", id="blanks around it"),
        pytest.param(KIND, "purchase order ", "Purchase Order", id="both"),
        pytest.param({"const": "Yes"}, "YES", "Yes", id="a constant"),
        pytest.param({"type": "array", "items": KIND}, ["INVOICE", "Invoice"], ["Invoice", "Invoice"], id="in a list"),
        pytest.param(an_object(kind=KIND), {"kind": "INVOICE"}, {"kind": "Invoice"}, id="in an object"),
        pytest.param({"anyOf": [KIND, NULL]}, "INVOICE", "Invoice", id="in a union"),
        pytest.param(
            {"anyOf": [an_object(kind={"const": "A"}, n=INTEGER), an_object(kind={"const": "B"}, s=TEXT)]},
            {"kind": "b", "s": "x"},
            {"kind": "B", "s": "x"},
            id="telling two objects apart",
        ),
        pytest.param({"$ref": "#/$defs/kind"}, "INVOICE", "Invoice", id="behind a reference"),
        pytest.param({"anyOf": [KIND, TEXT]}, "INVOICE", "INVOICE", id="not where any text will do"),
        pytest.param({"enum": ["Straße", "x"]}, "STRASSE", "Straße", id="a letter that folds into two"),
    ],
)
def test_a_declared_text_in_another_case_or_with_blanks_is_read_as_declared(schema: Any, value: Any, read: Any) -> None:
    answer = {"x": value}

    reading = Reader(with_defs(an_object(x=schema), kind=KIND), {}).read(answer)

    assert reading == Reading({"x": read})
    assert answer == {"x": value}, "the caller's answer stays as it came"


def test_a_text_that_could_be_two_declared_ones_is_a_problem() -> None:
    reader = Reader(an_object(x={"enum": ["us", "US"]}), {})

    assert reader.read({"x": "US"}) == Reading({"x": "US"})
    assert reader.read({"x": "Us"}).problem == "x: 'Us' is not one of ['us', 'US']"


def test_a_corrected_answer_is_still_validated() -> None:
    reader = Reader(an_object(kind=KIND, n=INTEGER), {})

    assert reader.read({"kind": "invoice", "n": "x"}).problem == "n: 'x' is not of type 'integer'"


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        pytest.param(
            an_object(a={"type": "strng"}),
            "properties.a.type: JSON Schema has no type 'strng'; did you mean 'string'?",
            id="no JSON Schema",
        ),
        pytest.param(
            an_object(a={"type": "array", "items": {"$ref": "#/$defs/A"}}),
            "properties.a.items.$ref: '#/$defs/A' names nothing in the schema",
            id="a reference to nothing, deep inside",
        ),
        pytest.param(
            {"type": "object"}, "the schema must be an object with properties; each becomes a column", id="no property"
        ),
    ],
)
def test_a_reader_refuses_a_schema_that_cannot_be_used(schema: Any, said: str) -> None:
    with pytest.raises(SchemaProblem) as problem:
        Reader(schema, {})

    assert str(problem.value) == said


# -- models ----------------------------------------------------------------------------------------------------------


class Line(BaseModel):
    what: str = Field(min_length=1)
    price: float = Field(ge=0)


class Bill(BaseModel):
    number: str
    day: datetime.date
    kind: Literal["Invoice", "Order"]
    paid: bool | None
    lines: list[Line] = Field(max_length=3)


def test_a_pydantic_model_becomes_a_schema_that_structured_outputs_support() -> None:
    schema = schema_of_model(Bill)

    assert first_problem(schema) is None
    assert schema_problem(schema) is None
    assert {name: found.kind for name, found in columns(schema, {}).items()} == {
        "number": "text",
        "day": "date",
        "kind": "text",
        "paid": "boolean",
        "lines": "json",
    }


def test_unsupported_constraints_of_a_model_move_to_the_description() -> None:
    schema = schema_of_model(Bill)

    assert schema["properties"]["lines"]["description"] == "{maxItems: 3}"
    assert schema["$defs"]["Line"]["properties"]["price"]["description"] == "{minimum: 0}"


class WithAnything(BaseModel):
    a: Any


class WithMapping(BaseModel):
    prices: dict[str, float]


class Tree(BaseModel):
    children: list["Tree"]


def test_a_model_with_a_field_of_any_type_is_refused() -> None:
    with pytest.raises(SchemaProblem, match="WithAnything has a field whose type is too general for a schema"):
        schema_of_model(WithAnything)


def test_a_model_with_a_mapping_is_refused_because_it_would_lose_its_keys() -> None:
    with pytest.raises(SchemaProblem) as problem:
        schema_of_model(WithMapping)

    assert str(problem.value) == (
        "properties.prices: structured outputs do not support a mapping with arbitrary keys; "
        "write a list of objects with a key each"
    )


def test_a_recursive_model_becomes_a_schema_that_is_then_refused() -> None:
    assert "do not support recursion" in str(first_problem(schema_of_model(Tree)))
