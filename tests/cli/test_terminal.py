"""Commands print safely, with any characters in the data and any encoding of the terminal."""

import io
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import typer.main

from pipeline.cli.app import app, main
from pipeline.cli.running import command_line, note_running, running_command
from pipeline.cli.terminal import say
from pipeline.emulator import RunningEmulator, start
from pipeline.escapes import escaped, inline, json_text, stripped
from pipeline.job import json_values
from pipeline.planning.selection import Selection
from pipeline.report import log
from pipeline.source import identity

JOB = """\
name: notes
source: {path: notes.csv, key: id}
request: {model: claude-haiku-4-5, max_tokens: 60, prompt: "Résumé: {{ text }}"}
sink: {table: answers}
canary: false
"""
ROWS = "id,text\n1é,Ça va?\n2,Ünlü\n"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[RunningEmulator]:
    with start(tmp_path / "emulator", processing_seconds=0.05) as running:
        yield running


@pytest.fixture
def command(api: RunningEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., bytes]:
    """Return a function that runs a command with a stdout in an encoding and returns what it wrote."""
    (tmp_path / "notes.yaml").write_text(JOB, encoding="utf-8")
    (tmp_path / "notes.csv").write_text(ROWS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", api.url)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "test")
    monkeypatch.setenv("BATCH_POLL_SECONDS", "0.05")

    def ran(*words: str, encoding: str = "ascii") -> bytes:
        monkeypatch.setattr(sys, "argv", ["batch-pipeline", *words])
        out = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding))
        with pytest.raises(SystemExit) as ended:
            main()
        sys.stdout.flush()
        assert ended.value.code in (0, 1)
        return out.getvalue()

    return ran


# -- a stdout that does not take all characters ------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_every_command_works_when_stdout_is_not_utf_8(
    command: Callable[..., bytes], api: RunningEmulator, encoding: str
) -> None:
    api.emulator.add_fault(on="item", do="error", error_type="api_error", message="Désolé 世界", match="Ça")
    commands = ["check", "estimate", "preview --yes", "run", "status", "errors", "verify", "run --dry-run"]
    commands += ["show --key 2", "preview --yes --key 2 --key 1é", "preview --yes --sample -n 1"]

    for words in commands:
        plain = command(*words.split(), "notes.yaml", encoding=encoding)
        facts = command(*words.split(), "notes.yaml", "--json", encoding=encoding)

        assert plain.decode(encoding) is not None
        assert [json.loads(line.decode("ascii")) for line in facts.splitlines()] or words == "run"
        if words == "check":
            assert b"R\\u00e9sum\\u00e9: \\u00c7a va?" in plain
        if words.startswith("show"):
            assert b"R\\u00e9sum\\u00e9: \\u00dcnl\\u00fc" in plain
        if words == "errors":
            assert b"4e16" in plain
    assert "é".encode() in command("export", "notes.yaml", encoding=encoding)  # a file of JSON lines is UTF-8


def test_texts_are_printed_unchanged_when_stdout_is_utf_8(command: Callable[..., bytes]) -> None:
    assert "Résumé: Ça va?".encode() in command("check", "notes.yaml", encoding="utf-8")
    assert "Résumé: Ça va?".encode() in command("check", "notes.yaml", "--json", encoding="UTF8")


# -- characters that command a terminal --------------------------------------------------------------------------------

EVIL = "a\x1b[2J\u202eb\x9b1m\x07"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, Grüße, 世界 🙂", "plain, Grüße, 世界 🙂"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\x9b\x85\x7f\r", r"\x9b\x85\x7f\r"),
        ("\u202eabc\u2066\u200f\u061c\u2028", r"\u202eabc\u2066\u200f\u061c\u2028"),
        ("half \ud83d", r"half \ud83d"),
    ],
    ids=["plain", "an escape", "one byte", "bidirectional marks", "half a character"],
)
def test_control_characters_of_a_terminal_are_escaped(text: str, shown: str) -> None:
    assert escaped(text) == inline(text) == shown
    assert inline(f"{text}\n\t") == rf"{shown}\n\t"
    assert escaped(f"{text}\n\t") == f"{shown}\n\t"
    assert escaped(stripped(text)) == stripped(text)


@pytest.mark.parametrize("ascii_only", [True, False])
def test_any_text_is_unchanged_after_reading_its_json(ascii_only: bool) -> None:
    texts = [chr(code) for code in (*range(0x3000), 0xFFFD, 0x1F642, 0x10FFFF)]

    line = json_text(texts, ascii_only=ascii_only)

    assert json.loads(line) == texts
    assert escaped(line) == line
    assert line.isascii() == ascii_only
    assert json.loads(json_text(["\udc80"], ascii_only=ascii_only)) == ["\udc80"]


def test_foreign_text_in_a_message_cannot_control_the_terminal_or_look_like_our_line(
    capfd: pytest.CaptureFixture[str],
) -> None:
    say(f"error: {EVIL}.csv: there is no such file\nnext: rm")

    said = capfd.readouterr().err
    assert said == r"error: a\x1b[2J\u202eb\x9b1m\x07.csv: there is no such file" + "\n    next: rm\n"


def test_errors_escapes_keys_and_api_messages_and_retry_accepts_the_key_as_shown(
    command: Callable[..., bytes], api: RunningEmulator, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    api.emulator.add_fault(on="item", do="error", error_type="invalid_request_error", message=f"{EVIL}\nnext: rm")
    (tmp_path / "notes.csv").write_text(f'id,text\n"{EVIL}",One\n2,Two\n', encoding="utf-8")
    command("run", "notes.yaml", encoding="utf-8")
    capfd.readouterr()

    plain = command("errors", "notes.yaml", encoding="utf-8").decode()
    facts = command("errors", "notes.yaml", "--json", encoding="utf-8").decode()
    [cause] = map(json.loads, facts.splitlines())
    key = next(key for key in cause["keys"] if key != "2")
    said = command("retry", "notes.yaml", "--key", key, "--yes").decode()

    everything = plain + facts + said + capfd.readouterr().err
    assert everything == escaped(everything)
    assert r"errored (invalid_request_error): a\x1b[2J\u202eb\x9b1m\x07\nnext: rm" in plain
    assert key == r'["a\u001b[2J\u202eb\u009b1m\u0007"]'
    assert len(list(api.emulator.accepted())) == 3


def test_a_key_can_be_given_as_stored_or_as_shown() -> None:
    stored = json_values.dump([EVIL, 7])

    for given in (identity.shown(stored), identity.joined(stored), stored):
        assert Selection(keys=(given,)).names(stored)
    assert not Selection(keys=("a",)).names(stored)
    assert identity.shown('["acme",17]') == "acme,17"


def test_a_line_of_the_log_is_ascii(capfd: pytest.CaptureFixture[str]) -> None:
    record = log.logger.makeRecord("pipeline", 20, "", 0, "%s", (f"é{EVIL}",), None)

    line = log.JsonFormatter().format(record)

    assert line.isascii()
    assert json.loads(line)["message"] == f"é{EVIL}"


# -- options -----------------------------------------------------------------------------------------------------------


def test_every_command_accepts_the_common_options() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]

    for name, taken in commands.items():
        options = {option for parameter in taken.params for option in parameter.opts}
        if name != "emulator":
            assert {"--database", "--spool", "--emulator", "--log-format", "--json", "--debug"} <= options, name


@pytest.mark.parametrize(
    ("given", "again", "status"),
    [
        pytest.param("retry j.yaml", "retry j.yaml", "status j.yaml", id="nothing but the job"),
        pytest.param(
            "run --limit 2 --yes j.yaml --database=a.db",
            "run j.yaml --limit 2 --yes --database a.db",
            "status j.yaml --database a.db",
            id="options before the job and with an equals sign",
        ),
        pytest.param(
            "retry j.yaml --emulator --var a=1 --var b=2 --json --debug --poll-seconds 1",
            "retry j.yaml --poll-seconds 1 --var a=1 --var b=2 --emulator",
            "status j.yaml --emulator",
            id="options that are carried over and options that change nothing",
        ),
        pytest.param(
            "retry j.yaml --key --json --key --emulator --where '--database x'",
            "retry j.yaml --key --json --key --emulator --where '--database x'",
            "status j.yaml",
            id="values that look like options",
        ),
    ],
)
def test_the_next_command_repeats_the_options_that_it_needs(given: str, again: str, status: str) -> None:
    name, *words = shlex.split(given)
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]

    with note_running(command.make_context(name, words)):
        assert command_line(*running_command()) == f"batch-pipeline {again}"
        assert command_line("status", "j.yaml") == f"batch-pipeline {status}"


def test_no_module_reads_sys_argv() -> None:
    modules = (Path(__file__).parents[2] / "pipeline").rglob("*.py")

    assert [path.name for path in modules if "sys.argv" in path.read_text(encoding="utf-8")] == []


def test_options_given_by_the_environment_are_not_repeated_in_the_next_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCH_DATABASE_URL", "sqlite:///other.db")
    command = typer.main.get_command(app).commands["run"]  # type: ignore[attr-defined]

    with note_running(command.make_context("run", ["j.yaml"])):
        assert command_line(*running_command()) == "batch-pipeline run j.yaml"


@pytest.mark.parametrize("words", [["--version"], ["--version", "run"]])
def test_the_version_is_printed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["batch-pipeline", *words])

    with pytest.raises(SystemExit) as ended:
        main()

    assert (ended.value.code, capfd.readouterr().out) == (0, f"batch-pipeline {version('batch-pipeline')}\n")


@pytest.mark.parametrize("name", ["run", "retry", "preview"])
def test_help_says_that_commands_ask_only_on_a_terminal(name: str) -> None:
    taken = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]

    [yes] = [parameter for parameter in taken.params if "--yes" in parameter.opts]
    assert "Without a terminal" in yes.help


def test_init_prints_the_name_of_its_file_as_json(command: Callable[..., bytes], tmp_path: Path) -> None:
    said = command("init", "notes.csv", "-o", "made.yaml", "--json", "--spool", str(tmp_path / "spool"))

    assert json.loads(said) == {"event": "init", "file": "made.yaml"}
