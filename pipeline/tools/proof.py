"""Does each tool of a job have a function that takes what the tool's schema names? Proven before money is spent.

Whether names and sections fit each other, `request.check` says; here the functions are found.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.answer.outcome import client_tools
from pipeline.errors import JobError
from pipeline.job.json_schema import SchemaProblem, alternatives, as_json, did_you_mean
from pipeline.job.model import Job
from pipeline.job.rounds import reference
from pipeline.tools.calls import Tool, Toolbox
from pipeline.tools.references import Function, ReferenceProblem, find_function

#: Functions that were given in Python, by job, tool and reference: a stored job has the reference alone.
_given: dict[tuple[str, str, str], Function] = {}


def load_tools(job: Job) -> Toolbox | None:
    """Return the tools of the job with their functions; None if the job has no tools that the pipeline runs.

    A stored job gets the functions that were given in this process when the job was declared in Python.
    Raises JobError for a function that cannot be found, or takes other arguments than the schema of its tool names.
    """
    rounds = job.rounds
    if not rounds.tools:
        return None
    schemas = {str(tool.get("name")): tool.get("input_schema") for tool in client_tools(job.request.params)}
    tools = []
    for name, named in rounds.tools.items():
        function = _function(job, name, named)
        schema = schemas.get(name)
        if schema is not None:
            schema = as_json(schema)
            problem = _problem_of_arguments(function, schema)
            if problem is not None:
                who = named if isinstance(named, str) else reference(named)
                raise JobError(f"rounds.tools.{name}: {who} {problem}")
        tools.append(Tool(name, function, schema))
    return Toolbox(
        tools, timeout=rounds.timeout, max_output_bytes=rounds.max_output_bytes, beta=bool(job.request.betas)
    )


def _function(job: Job, name: str, named: Function | str) -> Function:
    """Return the function of a tool. Raises JobError."""
    if not isinstance(named, str):
        _given[job.name, name, reference(named)] = named
        return named
    given = _given.get((job.name, name, named))
    if given is not None:
        return given
    try:
        return find_function(named, Path(job.rounds.folder or "."))
    except ReferenceProblem as exc:
        raise JobError(f"rounds.tools.{name}: {exc}") from exc


def _problem_of_arguments(function: Function, schema: dict[str, Any]) -> str | None:
    """Return why the function cannot take the inputs that a schema describes, as the end of a sentence; None if not."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some functions that are not written in Python do not say what they take
        return None
    named, required = _named_in(schema)
    problem = _problem_of_names(parameters, named)
    if problem is not None:
        return problem
    for name, parameter in parameters.items():
        is_variable = parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        if is_variable or parameter.default is not inspect.Parameter.empty or name in required:
            continue
        if name in named:
            return f"needs the argument {name!r}, which the tool's input_schema does not require; give it a default"
        return (
            f"needs the argument {name!r}, which the tool's input_schema does not name{did_you_mean(name, named)}; "
            "they must fit"
        )
    return None


def _problem_of_names(parameters: Mapping[str, inspect.Parameter], named: set[str]) -> str | None:
    """Return which of the named arguments the function does not take; None if it takes all of them."""
    kinds = {name: parameter.kind for name, parameter in parameters.items()}
    takes = {name for name, kind in kinds.items() if kind in _BY_NAME}
    if inspect.Parameter.VAR_KEYWORD in kinds.values():
        return None
    for name in sorted(named - takes):
        if kinds.get(name) is inspect.Parameter.POSITIONAL_ONLY:
            return f"takes {name!r} by position alone; tools are called with arguments by name"
        return f"takes no argument {name!r}, which the tool's input_schema names{did_you_mean(name, takes - named)}"
    return None


_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _named_in(schema: dict[str, Any]) -> tuple[set[str], set[str]]:
    """Return the properties that a schema names, and those that each input must have."""
    try:
        kinds = list(alternatives(schema, schema))
    except SchemaProblem:  # `request.check` has refused it, unless the job was stored by another version
        return set(), set()
    named = {name for kind in kinds for name in kind.get("properties", {})}
    required = [set(kind.get("required", ())) for kind in kinds]
    return named, set.intersection(*required) if required else set()
