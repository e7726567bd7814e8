"""The JSON Schema of a pydantic model, in the form that the API takes. Pure."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipeline.job.json_schema import SchemaProblem, at_path

if TYPE_CHECKING:
    from pydantic import BaseModel


def of_model(model: type["BaseModel"]) -> dict[str, Any]:
    """The schema of a pydantic model as structured outputs take it: what they refuse moves to the descriptions.

    Raises SchemaProblem for a model with fields that no such schema can describe.
    """
    from anthropic import transform_schema

    original = model.model_json_schema()
    for path in _free_mappings(original, ()):
        raise SchemaProblem(
            at_path(
                path, "structured outputs take no mapping with keys of its own; write a list of objects with a key each"
            )
        )
    try:
        return transform_schema(original)
    except ValueError as exc:
        raise SchemaProblem(f"{model.__name__} has a field whose type says too little for a schema: {exc}") from exc


def _free_mappings(node: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The SDK's transformation would leave such a mapping without any key."""
    if isinstance(node, dict):
        if node.get("type") == "object" and "properties" not in node and node.get("additionalProperties", True):
            yield path
        for key, child in node.items():
            yield from _free_mappings(child, (*path, key))
    elif isinstance(node, list):
        for i, child in enumerate(node):
            yield from _free_mappings(child, (*path, str(i)))
