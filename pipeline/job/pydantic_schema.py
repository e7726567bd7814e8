"""Turn a pydantic model into a JSON Schema that the API accepts. Pure."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipeline.job.json_schema import SchemaProblem, at_path

if TYPE_CHECKING:
    from pydantic import BaseModel


def schema_of_model(model: type["BaseModel"]) -> dict[str, Any]:
    """Return the JSON Schema of a pydantic model for structured outputs.

    Constraints that structured outputs do not support become part of the descriptions.
    Raises SchemaProblem for a model with a field that such a schema cannot describe.
    """
    from anthropic import transform_schema

    original = model.model_json_schema()
    for path in _free_mappings(original, ()):
        raise SchemaProblem(
            at_path(
                path,
                "structured outputs do not support a mapping with arbitrary keys; "
                "write a list of objects with a key each",
            )
        )
    try:
        return transform_schema(original)
    except ValueError as exc:
        raise SchemaProblem(f"{model.__name__} has a field whose type is too general for a schema: {exc}") from exc


def _free_mappings(node: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the path of each mapping with arbitrary keys: the SDK would silently turn it into one without any key."""
    if isinstance(node, dict):
        if node.get("type") == "object" and "properties" not in node and node.get("additionalProperties", True):
            yield path
        for key, child in node.items():
            yield from _free_mappings(child, (*path, key))
    elif isinstance(node, list):
        for i, child in enumerate(node):
            yield from _free_mappings(child, (*path, str(i)))
