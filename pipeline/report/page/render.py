"""How does a page become HTML? Every text is escaped, and no text stands in a link, a style or a class. Pure."""

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.escapes import symbols


def render(facts: Mapping[str, Any]) -> str:
    """Return the HTML of a page."""
    text: str = _environment().get_template("page.html").render(facts)
    return text


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("pipeline.report.page"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["pct"] = _pct
    return made


def _visible(value: Any) -> Any:
    """Return a text with symbols for its control characters. What has __html__ is markup that a macro of ours made."""
    return symbols(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _pct(share: float) -> str:
    """Return a share as a length of CSS, such as `26.13%`. Only numbers come through."""
    return f"{100 * float(share):.2f}%"
