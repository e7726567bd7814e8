"""A tool whose function cannot be found, or takes other arguments, is refused before anything is sent."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import JobError
from pipeline.tools.proof import load_tools
from tests.tools.builders import LOOKUP, job_with, stored, use

Writer = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    """Writes a file with this text into the job's folder."""

    def written(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    return written


def answer(reference: str, folder: Path, number: str = "7") -> Any:
    """Return what the tool `lookup` of a stored job answers."""
    tools = load_tools(stored(job_with({"lookup": reference}, folder=folder)))
    assert tools is not None
    result = tools.call(use({"number": number}))
    assert "is_error" not in result
    return result["content"]


def refusal(reference: str | Callable[..., Any], folder: Path, **fields: Any) -> str:
    with pytest.raises(JobError) as refused:
        load_tools(job_with({"lookup": reference}, folder=folder, **fields))
    return str(refused.value)


# -- where functions are found ---------------------------------------------------------------------------------------


def test_a_job_without_tools_has_none() -> None:
    assert load_tools(job_with({}, declared=[])) is None


def test_a_module_beside_the_job_file_is_found_with_what_it_imports_and_its_folder_leaves_no_trace(
    write: Writer, tmp_path: Path
) -> None:
    write("found_tools.py", "import found_helpers\ndef lookup(number, year=2026): return found_helpers.of(number)\n")
    write("found_helpers.py", "def of(number): return f'number {number}'\n")
    path = list(sys.path)

    assert answer("found_tools.lookup", tmp_path) == "number 7"
    assert sys.path == path


def test_a_function_in_a_package_is_found(write: Writer, tmp_path: Path) -> None:
    write("found_package/__init__.py", "")
    write("found_package/inner.py", "from . import words\ndef lookup(number, year=1): return words.WORD + number\n")
    write("found_package/words.py", "WORD = 'w'\n")

    assert answer("found_package.inner.lookup", tmp_path) == "w7"


def test_a_module_that_python_finds_itself_is_found_where_the_folder_has_none(tmp_path: Path) -> None:
    tools = load_tools(
        job_with(
            {"match": "fnmatch.filter"},
            declared=[
                {
                    "name": "match",
                    "input_schema": {
                        "type": "object",
                        "properties": {"names": {"type": "array"}, "pat": {"type": "string"}},
                        "required": ["names", "pat"],
                    },
                }
            ],
            folder=tmp_path,
        )
    )

    assert tools is not None
    assert tools.call(use({"names": ["a.py", "b.c"], "pat": "*.py"}, "match"))["content"] == '["a.py"]'


def test_two_jobs_may_have_modules_of_the_same_name(write: Writer, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(f"{name}/same_tools.py", "from same_words import WORD\ndef lookup(number, year=1): return WORD\n")
        write(f"{name}/same_words.py", f"WORD = '{name}'\n")

    said = [answer("same_tools.lookup", tmp_path / name) for name in ("one", "two", "one")]

    assert said == ["one", "two", "one"]
    assert sys.modules["same_words"].WORD == "one"


def test_a_module_of_another_job_is_not_found(write: Writer, tmp_path: Path) -> None:
    write("one/lonely_tools.py", "from lonely_words import WORD\ndef lookup(number, year=1): return WORD\n")
    write("one/lonely_words.py", "WORD = 'one'\n")
    write("two/other_tools.py", "from lonely_words import WORD\ndef lookup(number, year=1): return WORD\n")

    assert answer("lonely_tools.lookup", tmp_path / "one") == "one"
    assert "there is no module lonely_tools in" in refusal("lonely_tools.lookup", tmp_path / "two")
    assert "its module needs 'lonely_words'" in refusal("other_tools.lookup", tmp_path / "two")
    assert answer("lonely_tools.lookup", tmp_path / "one") == "one"


def test_a_folder_does_not_take_the_place_of_the_standard_library(write: Writer, tmp_path: Path) -> None:
    import json

    write("json.py", "raise ValueError('this is not json')\n")
    write("json_tools.py", "import json\ndef lookup(number, year=1): return json.dumps(number)\n")

    assert answer("json_tools.lookup", tmp_path) == '"7"'
    assert sys.modules["json"] is json


def test_functions_that_were_given_in_python_serve_the_stored_job_of_this_process(tmp_path: Path) -> None:
    job = job_with({"lookup": lambda number, year=1: f"given {number} {year}"}, name="given_in_python")

    load_tools(job)

    tools = load_tools(stored(job))
    assert tools is not None
    assert tools.call(use({"number": "7"}))["content"] == "given 7 1"
    other = stored(job_with({"lookup": lambda number: number}, name="of_another_process"))
    with pytest.raises(JobError, match="is a function of a script or a notebook, which no other process can import"):
        load_tools(other)


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "reference", "said"),
    [
        pytest.param(
            "", "no_such_tools.lookup", "cannot be imported: there is no module no_such_tools in ", id="no module"
        ),
        pytest.param(
            "", "os.no_such.lookup", "cannot be imported: there is no module os.no_such in ", id="no module inside"
        ),
        pytest.param("1 +", "r1.lookup", "r1.lookup cannot be imported: SyntaxError: ", id="not Python"),
        pytest.param("1 / 0", "r2.lookup", "cannot be imported: ZeroDivisionError: division by zero", id="an error"),
        pytest.param("raise SystemExit(3)", "r3.lookup", "r3.lookup cannot be imported: SystemExit: 3", id="an exit"),
        pytest.param("import no_such_lib", "r4.lookup", "its module needs 'no_such_lib'", id="a missing library"),
        pytest.param(
            "def look_up(): ...", "r5.lookup", "module r5 has no function 'lookup'; did you mean 'look_up'?", id="none"
        ),
        pytest.param("lookup = {}", "r6.lookup", "r6.lookup is a value of type dict, not a function", id="no function"),
        pytest.param("class lookup: ...", "r7.lookup", "r7.lookup is a class, not a function", id="a class"),
        pytest.param("", "__main__.lookup", "is a function of a script or a notebook", id="of a script"),
        pytest.param(
            "def lookup(nummer, year=1): ...",
            "r8.lookup",
            "r8.lookup takes no argument 'number', which the tool's input_schema names; did you mean 'nummer'?",
            id="another name",
        ),
        pytest.param(
            "def lookup(number): ...", "r9.lookup", "r9.lookup takes no argument 'year', which the tool's", id="too few"
        ),
        pytest.param(
            "def lookup(number, year, more): ...",
            "r10.lookup",
            "r10.lookup needs the argument 'year', which the tool's input_schema does not require; give it a default",
            id="an optional one without default",
        ),
        pytest.param(
            "def lookup(number, more, year=1): ...",
            "r11.lookup",
            "r11.lookup needs the argument 'more', which the tool's input_schema does not name; they must fit",
            id="one more",
        ),
        pytest.param(
            "def lookup(number, /, year=1): ...",
            "r12.lookup",
            "r12.lookup takes 'number' by position alone; tools are called with arguments by name",
            id="by position",
        ),
    ],
)
def test_a_function_that_cannot_be_used_is_refused_in_a_sentence(
    write: Writer, tmp_path: Path, module: str, reference: str, said: str
) -> None:
    write(f"{reference.partition('.')[0]}.py" if module else "nothing.py", module)

    message = refusal(reference, tmp_path)

    assert message.startswith("rounds.tools.lookup: ")
    assert said in message
    assert "\n" not in message


def one(number: str, **more: Any) -> str:
    return number


async def two(*, number: str, year: int = 1) -> str:
    return f"{number} {year}"


class Three:
    def __call__(self, number: str, year: int = 1) -> str:
        return number

    def lookup(self, number: str, year: int = 1) -> str:
        return number


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(one, id="any further arguments"),
        pytest.param(two, id="an async function"),
        pytest.param(Three(), id="an object that can be called"),
        pytest.param(Three().lookup, id="a method of an object"),
        pytest.param(functools.partial(one, more=1), id="a function with an argument filled in"),
    ],
)
def test_whatever_takes_the_arguments_is_a_function(function: Callable[..., Any]) -> None:
    tools = load_tools(job_with({"lookup": function}))

    assert tools is not None
    assert tools.call(use({"number": "7"}))["content"].startswith("7")


def test_a_given_function_that_takes_other_arguments_is_named() -> None:
    with pytest.raises(JobError, match=r"lookup: tests\.tools\.test_proof\.Three\.lookup needs the argument 'self'"):
        load_tools(job_with({"lookup": Three.lookup}))


def test_a_tool_that_the_api_describes_itself_takes_any_arguments() -> None:
    bash = {"type": "bash_20250124", "name": "bash"}

    tools = load_tools(job_with({"bash": lambda command: command.upper(), "lookup": one}, declared=[bash, LOOKUP]))

    assert tools is not None
    assert tools.call(use({"command": "ls"}, "bash"))["content"] == "LS"
