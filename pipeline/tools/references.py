"""Find the function that a reference like `mytools.lookup` names. Edge: imports modules.

A module is looked for in the job's folder first, as for a script in that folder, and then where Python looks. The
folder does not stay on `sys.path`, so that no module of it takes the place of another one later.
"""

import contextlib
import importlib
import inspect
import pkgutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.job.json_schema import did_you_mean

Function = Callable[..., Any]

_lock = threading.Lock()  # sys.path and sys.modules are of the whole process
_modules: dict[tuple[Path, str], ModuleType] = {}  #: by folder and name: two jobs may have modules of the same name
_brought: dict[Path, set[str]] = {}  #: by folder: the names of the modules in it that were imported for its jobs


class ReferenceProblem(Exception):
    """A reference names no function that can be called. The message does not name the job's field."""


def find_function(reference: str, folder: Path) -> Function:
    """Return the function that a reference names. folder: where its module is looked for first.

    Raises ReferenceProblem if there is none, or its module cannot be imported.
    """
    module_name, _, name = reference.rpartition(".")
    if "<" in reference or reference.startswith("__main__."):
        raise ReferenceProblem(
            f"{reference} is a function of a script or a notebook, which no other process can import; put it into a "
            "module, and name it MODULE.FUNCTION"
        )
    module = _module(module_name, folder.absolute(), reference)
    found = getattr(module, name, None)
    if found is None:
        functions = [each for each, value in vars(module).items() if inspect.isroutine(value)]
        raise ReferenceProblem(f"module {module_name} has no function {name!r}{did_you_mean(name, functions)}")
    if not callable(found) or isinstance(found, type):
        kind = "a class" if isinstance(found, type) else f"a value of type {type(found).__name__}"
        raise ReferenceProblem(f"{reference} is {kind}, not a function")
    function: Function = found
    return function


def _module(name: str, folder: Path, reference: str) -> ModuleType:
    """Return a module, imported with `folder` as the first place to look. Raises ReferenceProblem."""
    with _lock:
        known = _modules.get((folder, name))
        if known is not None:
            return known
        importlib.invalidate_caches()  # a file that was written a moment ago may be missing in a listing
        try:
            with _first_on_path(folder):
                module = importlib.import_module(name)
        except ModuleNotFoundError as exc:
            if exc.name is None or not f"{name}.".startswith(f"{exc.name}."):
                raise ReferenceProblem(f"{reference} cannot be imported: its module needs {exc.name!r}: {exc}") from exc
            raise ReferenceProblem(
                f"{reference} cannot be imported: there is no module {exc.name} in {folder} or where Python looks"
            ) from exc
        except (Exception, SystemExit) as exc:  # whatever the user's module does
            raise ReferenceProblem(f"{reference} cannot be imported: {type(exc).__name__}: {exc}") from exc
        _modules[folder, name] = module
        return module


@contextlib.contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    """Make imports look into the folder first. Modules of the same names, of other folders, are set aside meanwhile."""
    aside = _hidden_by(folder)
    for name in aside:
        del sys.modules[name]
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        new = {name: _file_of(sys.modules[name]) for name in sys.modules.keys() - before}
        brought = {name for name, file in new.items() if file is not None and folder in file.parents}
        _brought.setdefault(folder, set()).update(brought)
        sys.modules.update(aside)


def _hidden_by(folder: Path) -> dict[str, ModuleType]:
    """Return the imported modules that must not be found: of names that the folder has, or from folders of other jobs.

    What Python finds without those folders, too, it finds again.
    """
    names = {found.name for found in pkgutil.iter_modules([str(folder)])} - sys.stdlib_module_names
    others = {name for other, brought in _brought.items() if other != folder for name in brought}
    named = {
        name: module for name, module in sys.modules.copy().items() if name in others or name.partition(".")[0] in names
    }
    return {name: module for name, module in named.items() if (file := _file_of(module)) and folder not in file.parents}


def _file_of(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return None if file is None else Path(str(file))
