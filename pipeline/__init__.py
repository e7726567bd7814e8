"""Send rows to Anthropic's Message Batches API and store the answers in a SQL table. This is the public API.

from pipeline import Job, results, run

job = Job(name=..., source=..., ...)    # or load_job("tickets.yaml")
run(job, database="sqlite:///batches.db")
frame = results(job, database="sqlite:///batches.db")
"""

from types import ModuleType
from typing import TYPE_CHECKING, Any

from pipeline import errors as _errors

if TYPE_CHECKING:
    from pipeline.job.model import Job
    from pipeline.library.asking import errors, status, verify
    from pipeline.library.live import preview
    from pipeline.library.reading import export, load_job, results
    from pipeline.library.running import cancel, retry, run, run_async

__all__ = [
    "Job",
    "cancel",
    "errors",
    "export",
    "load_job",
    "preview",
    "results",
    "retry",
    "run",
    "run_async",
    "status",
    "verify",
]

#: Where each name is defined.
_MODULES = {
    "Job": "pipeline.job.model",
    "cancel": "pipeline.library.running",
    "export": "pipeline.library.reading",
    "load_job": "pipeline.library.reading",
    "preview": "pipeline.library.live",
    "results": "pipeline.library.reading",
    "retry": "pipeline.library.running",
    "run": "pipeline.library.running",
    "run_async": "pipeline.library.running",
    "status": "pipeline.library.asking",
    "verify": "pipeline.library.asking",
}


class _ErrorsModule(ModuleType):
    """The module `errors`, which can be called: a package cannot have a module and a function of the same name."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return _imported("pipeline.library.asking", "errors")(*args, **options)


_errors.__class__ = _ErrorsModule


def _imported(module: str, name: str) -> Any:
    from importlib import import_module

    return getattr(import_module(module), name)


def __getattr__(name: str) -> Any:
    """Import a name of the public API when it is first used, so that `--help` does not wait for the imports."""
    if name in _MODULES:
        return _imported(_MODULES[name], name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
