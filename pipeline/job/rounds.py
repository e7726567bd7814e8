"""Which tools does the pipeline run between the rounds of a row? The section `rounds` of a job. Pure.

A round is one request of a row: the model asks for tools, their results go back in the next round.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_serializer

from pipeline.job.section import NonEmpty, Section

#: `module.function`, as it is imported. In a stored job it may also name a function that cannot be imported, as
#: `__main__.lookup` or `mytools.make.<locals>.lookup`.
_REFERENCE = re.compile(r"[\w<>]+(\.[\w<>]+)+")
_WAIT = re.compile(r"([0-9]+)(s|m|h)")
_SECONDS = {"s": 1, "m": 60, "h": 3600}


def _is_function(value: Any) -> Any:
    """Return the value. Raises ValueError if it neither is nor names a function."""
    named = isinstance(value, str) and _REFERENCE.fullmatch(value)
    if named or (callable(value) and not isinstance(value, type)):
        return value
    raise ValueError("must name a Python function as MODULE.FUNCTION, for example mytools.lookup")


def _is_wait(value: Any) -> Any:
    """Return the value. Raises ValueError if it is no time to wait."""
    if isinstance(value, str) and _WAIT.fullmatch(value):
        return value
    raise ValueError("must be a number with s, m or h, for example 10m")


def reference(function: Callable[..., Any]) -> str:
    """Return `module.name` of a function, by which it is imported, or at least known to people."""
    name = getattr(function, "__qualname__", f"<{type(function).__name__}>")
    return f"{getattr(function, '__module__', None) or type(function).__module__}.{name}"


Tool = Annotated[Callable[..., Any] | NonEmpty, BeforeValidator(_is_function)]


class Rounds(Section):
    """The tools that are run for the model between the rounds of a row. Each round is a request.

    max: the most rounds of a row. tools: each client tool of `request.params.tools` by its name, with the function that
    runs it, as `module.function`; in Python also the function itself. folder: where modules are looked for before
    Python's own places; None: the folder of the job file, in Python the current folder. timeout: seconds for one call.
    max_output_bytes: of what one call returns, as UTF-8. wait: how long a round that can be sent waits for other rows,
    as `10m`, in s, m or h.
    """

    max: Annotated[int, Field(strict=True, ge=1, le=100)] = 6
    tools: dict[NonEmpty, Tool] = {}
    folder: NonEmpty | None = None
    timeout: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)] = 30
    max_output_bytes: Annotated[int, Field(strict=True, ge=100, le=10_000_000)] = 20_000
    wait: Annotated[str, BeforeValidator(_is_wait)] = "10m"

    @property
    def wait_seconds(self) -> int:
        """The time of `wait` in seconds."""
        number, unit = self.wait[:-1], self.wait[-1]
        return int(number) * _SECONDS[unit]

    @field_serializer("tools")
    def _references(self, tools: dict[str, Any]) -> dict[str, str]:
        """Return what is stored with the job in place of functions."""
        return {name: tool if isinstance(tool, str) else reference(tool) for name, tool in tools.items()}
