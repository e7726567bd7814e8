"""The documents for those who join the project are there, are linked, and keep their order."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = ["LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs/glossary.md"]
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")  # to a file, not to a site


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads(text("pyproject.toml"))["project"]
    return found


def declared(*extras: str) -> set[str]:
    """The libraries that the package and these of its extras ask for, by the names they are installed by."""
    wanted = [
        *project()["dependencies"],
        *(one for extra in extras for one in project()["optional-dependencies"][extra]),
    ]
    return {normal(re.split(r"[\[<>=!~; ]", one, maxsplit=1)[0]) for one in wanted}


def normal(name: str) -> str:
    """A library's name in one spelling of several that mean the same."""
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(package: str) -> Iterator[str]:
    """The first names of all modules that a package imports."""
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (name.name.partition(".")[0] for name in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                yield node.module.partition(".")[0]


#: botocore is boto3's own core; IPython is there where a notebook is, and else is not imported.
BROUGHT = {"botocore", "IPython"}
OURS = {"pipeline", "flows"}
CLOUDS = ["aws", "google", "s3", "gs", "az"]


def terms() -> list[str]:
    rows = re.findall(r"^\| (.+?) \| .+ \|$", text("docs/glossary.md"), re.MULTILINE)
    return [term for term in rows if term not in ("word", "---")]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_each_document_is_there_and_linked_from_the_readme(name: str) -> None:
    assert text(name).strip()
    assert f"]({name})" in README


@pytest.mark.parametrize("name", [name for name in [*DOCUMENTS, "README.md"] if name.endswith(".md")])
def test_each_file_that_a_document_links_to_is_there(name: str) -> None:
    linked = LINK.findall(text(name))

    assert [link for link in linked if not (ROOT / name).parent.joinpath(link).exists()] == []


def test_the_terms_of_the_glossary_are_in_alphabetical_order_and_none_is_there_twice() -> None:
    assert terms() == sorted(set(terms()), key=str.casefold)
    assert len(terms()) > 40


def test_the_changelog_has_what_is_unreleased_first_and_the_version_of_the_package() -> None:
    versions = re.findall(r"^## \[(.+?)\]", text("CHANGELOG.md"), re.MULTILINE)

    assert versions[0] == "Unreleased"
    assert versions[1] == project()["version"]


def test_the_licence_of_the_package_is_that_of_the_file() -> None:
    assert text("LICENSE").startswith(f"{project()['license']} License\n")


@pytest.mark.parametrize(("package", "extras"), [("pipeline", CLOUDS), ("flows", [*CLOUDS, "prefect", "dask"])])
def test_each_library_that_a_package_imports_is_declared(package: str, extras: list[str]) -> None:
    libraries = set(imported(package)) - sys.stdlib_module_names - OURS - BROUGHT
    installed_by = {name: {normal(one) for one in names} for name, names in packages_distributions().items()}

    assert {name for name in libraries if not declared(*extras) & installed_by.get(name, set())} == set()
    assert len(libraries) > 3


def test_make_help_names_every_target() -> None:
    makefile = text("Makefile")
    (phony,) = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)

    assert re.findall(r"^([a-z-]+):.*## .+$", makefile, re.MULTILINE) == phony.split()


def test_the_hooks_before_a_commit_download_nothing() -> None:
    assert re.findall(r"repo: (\S+)", text(".pre-commit-config.yaml")) == ["local"]
