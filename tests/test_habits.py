"""The documents for those who join the project are there, are linked, and keep their order."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = ["LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs/glossary.md"]
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")  # to a file, not to a site


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def project() -> dict[str, object]:
    found: dict[str, object] = tomllib.loads(text("pyproject.toml"))["project"]
    return found


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


def test_make_help_names_every_target() -> None:
    makefile = text("Makefile")
    (phony,) = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)

    assert re.findall(r"^([a-z-]+):.*## .+$", makefile, re.MULTILINE) == phony.split()


def test_the_hooks_before_a_commit_download_nothing() -> None:
    assert re.findall(r"repo: (\S+)", text(".pre-commit-config.yaml")) == ["local"]
