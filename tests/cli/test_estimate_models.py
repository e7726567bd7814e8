"""`estimate --models` says for each model what all rows would cost with it, and what it refuses of the requests."""

from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest

from pipeline.emulator import RunningEmulator
from tests.cli import test_commands
from tests.cli.test_commands import Command

api, folder, command = test_commands.api, test_commands.folder, test_commands.command  # fixtures

HAIKU, SONNET, OPUS = "claude-haiku-4-5", "claude-sonnet-5-5", "claude-opus-5"


def job(folder: Path, sections: str = "", *, rows: str | None = None, **request: Any) -> None:
    """Write a job file. request: fields of the request. sections: further lines. rows: of its source."""
    fields = {"model": HAIKU, "max_tokens": 60, "prompt": "Summarize: {{ text }}", **request}
    lines = ["name: notes", "source: {path: notes.csv, key: id}", "sink: {table: answers}", sections]
    (folder / "job.yaml").write_text("\n".join([*lines, f"request: {orjson.dumps(fields).decode()}", ""]))
    if rows is not None:
        (folder / "notes.csv").write_text(rows)


def by_model(command: Command, names: str, *options: str) -> dict[str, dict[str, Any]]:
    """Return the facts of each model, in the order in which they are printed."""
    ran = command("estimate", "job.yaml", "--models", names, "--json", *options)
    assert ran.code == 0
    return {facts["model"]: facts for facts in ran.events}


def test_each_model_has_a_line_and_the_cheapest_comes_first(command: Command) -> None:
    ran = command("estimate", "job.yaml", "--models", f"{OPUS},{SONNET},{HAIKU}")

    assert ran.code == 0
    assert ran.out == (
        "rows     6 of the source, as if none had an answer\n"
        "input    tokens a request, by 6 sampled rows; the API counted 5 requests for each model\n"
        "output   not known before the first answers: at least one token, at worst max_tokens\n"
        "\n"
        "MODEL              TOKENS  LONGEST  READS  AT LEAST  EXPECTED  AT WORST  DOES THE JOB\n"
        "claude-haiku-4-5*      24       24   200k   $0.0001         ?   $0.0010  yes\n"
        "claude-sonnet-5-5      24       24     1M   $0.0002         ?   $0.0019  yes\n"
        "claude-opus-5          24       24     1M   $0.0004         ?   $0.0049  yes\n"
        "\n"
        "* the model of the job\n"
    )
    assert ran.next == ["trial", "job.yaml", "--name", SONNET, "--set", f"request.model={SONNET}"]


def test_the_costs_are_those_of_a_job_that_asks_the_model(command: Command, folder: Path) -> None:
    said = by_model(command, f"{SONNET},{OPUS}")

    for model in (SONNET, OPUS):
        job(folder, model=model)
        [alone] = command("estimate", "job.yaml", "--json").events
        assert said[model]["cost_usd"] == alone["cost_usd"]
        assert said[model]["input_tokens"]["mean"] == alone["input_tokens"]["mean"]


def test_past_answers_of_the_job_give_the_expected_cost_of_all_rows(command: Command) -> None:
    command("run", "job.yaml")

    text, said = command("estimate", "job.yaml", "--models", SONNET), by_model(command, f"{HAIKU},{SONNET}")

    assert "output   by 6 past answers of this job; another model may write more or less\n" in text.out
    for facts in said.values():
        assert facts["rows"] == 6
        assert facts["cost_usd"]["low"] <= facts["cost_usd"]["expected"] <= facts["cost_usd"]["worst"]


def test_each_model_counts_a_few_requests_and_nothing_is_sent(
    command: Command, api: RunningEmulator, folder: Path
) -> None:
    job(folder, rows="id,text\n" + "".join(f"n{i},Note {i}\n" for i in range(50)))

    said = by_model(command, f"{HAIKU},{SONNET}")

    calls = Counter(call["path"].rpartition("/")[2] for call in api.emulator.log() if call["method"] == "POST")
    assert calls == {"count_tokens": 10}
    assert {facts["input_tokens"]["counted"] for facts in said.values()} == {5}
    assert list(api.emulator.accepted()) == []
    assert not (folder / "batches.db").exists()


def test_all_are_the_models_of_the_key_and_those_that_refuse_the_job_come_last(command: Command, folder: Path) -> None:
    job(folder, max_tokens=2_000, params={"thinking": {"type": "enabled", "budget_tokens": 1_024}})

    said = list(by_model(command, "all").values())

    able = [facts["does_the_job"] for facts in said]
    assert able == sorted(able, reverse=True)
    assert set(able) == {True, False}
    costs = [facts["cost_usd"]["worst"] for facts in said if facts["does_the_job"]]
    assert costs == sorted(costs)
    [refused] = [facts for facts in said if facts["model"] == OPUS]
    assert refused["cannot"] == [
        "request.params.thinking.type: claude-opus-5 does not support 'enabled'; use adaptive, and set how much by "
        "request.params.output_config.effort"
    ]
    assert [facts["model"] for facts in said if facts["own"]] == ["claude-haiku-4-5-20251001"]


def test_all_that_a_model_refuses_is_said(command: Command, folder: Path) -> None:
    job(folder, max_tokens=70_000, params={"output_config": {"effort": "high"}})

    ran = command("estimate", "job.yaml", "--models", f"{HAIKU},{SONNET}")

    reasons = [line.removeprefix("cannot   ") for line in ran.out.splitlines() if line.startswith("cannot")]
    assert reasons == [
        "request.max_tokens: 70000 is more than claude-haiku-4-5 allows (64,000)",
        "request.params.output_config.effort: claude-haiku-4-5 does not support effort; remove the field",
    ]
    assert ran.next[-1] == f"request.model={SONNET}"


def test_rows_that_are_longer_than_a_model_reads_are_counted(command: Command, folder: Path) -> None:
    job(folder, rows=f"id,text\nshort,Hello\nlong,{'word ' * 210_000}\n")

    said = by_model(command, f"{HAIKU},{SONNET}")
    ran = command("estimate", "job.yaml", "--models", f"{HAIKU},{SONNET}")

    assert [(facts["model"], facts["too_long"], facts["does_the_job"]) for facts in said.values()] == [
        (SONNET, 0, True),
        (HAIKU, 1, False),
    ]
    assert f"cannot   {HAIKU}: it reads 200,000 tokens, and 1 of 2 sampled rows have more\n" in ran.out


def test_a_retired_and_a_deprecated_model_are_told_apart(command: Command) -> None:
    ran = command("estimate", "job.yaml", "--models", "claude-3-haiku-20240307,claude-sonnet-4-5")

    assert (
        "cannot   request.model: claude-3-haiku-20240307 was retired on 2026-04-20; choose an active model" in ran.out
    )
    assert "warning  claude-sonnet-4-5-20250929 is deprecated and " in ran.out
    assert "~ estimated from bytes, the API did not count\n" in ran.out
    assert ran.next[-1] == "request.model=claude-sonnet-4-5"


def test_a_model_without_a_price_comes_after_those_with_one(command: Command, folder: Path) -> None:
    names = f"claude-mythos-5,{OPUS}"

    unpriced = command("estimate", "job.yaml", "--models", names)
    job(folder, "prices: {claude-mythos-5: {input: 0.01, output: 0.01}}")
    priced = by_model(command, names)

    assert (
        "unpriced no batch price is known for claude-mythos-5; give one under prices in the job file\n" in unpriced.out
    )
    assert unpriced.next[-1] == f"request.model={OPUS}"
    assert list(priced) == ["claude-mythos-5", OPUS]


def test_each_model_is_asked_for_all_rows_of_a_job_that_chooses_a_model_by_row(command: Command, folder: Path) -> None:
    template = "{{ 'claude-opus-5' if id == 'n1' else 'claude-haiku-4-5' }}"
    job(folder, model=template)

    ran, [facts] = command("estimate", "job.yaml", "--models", SONNET), by_model(command, SONNET).values()
    job(folder, model=SONNET)
    [alone] = command("estimate", "job.yaml", "--json").events

    assert "model    request.model chooses a model by row; here each model is asked for all rows\n" in ran.out
    assert facts["cost_usd"] == alone["cost_usd"]


def test_a_prefix_that_a_model_does_not_cache_is_said(command: Command, folder: Path) -> None:
    job(folder, system="Be brief. " * 800, cache="1h")

    ran = command("estimate", "job.yaml", "--models", f"{HAIKU},{SONNET}")

    [warning] = [line for line in ran.out.splitlines() if line.startswith("warning")]
    assert "claude-haiku-4-5 caches from 4,096 on: nothing will be cached" in warning


def test_an_api_that_does_not_count_gives_estimates_from_bytes(command: Command, api: RunningEmulator) -> None:
    api.emulator.add_fault(on="count_tokens", do="status", status=404, error_type="not_found_error", times=1000)

    said = by_model(command, HAIKU)

    assert said[HAIKU]["input_tokens"]["counted"] == 0
    assert "the API did not count the tokens" in said[HAIKU]["warnings"][0]


def test_an_api_that_cannot_be_reached_for_a_count_is_not_asked_for_the_other_models(
    command: Command, api: RunningEmulator
) -> None:
    api.emulator.add_fault(on="count_tokens", do="foreign_page", kind="html", times=1000)

    said = by_model(command, f"{HAIKU},{SONNET},{OPUS}")

    first = [call["path"] for call in api.emulator.log() if call["path"].endswith("/count_tokens")]
    by_model(command, HAIKU)
    assert len(first) * 2 == sum(call["path"].endswith("/count_tokens") for call in api.emulator.log())
    assert [facts["input_tokens"]["counted"] for facts in said.values()] == [0, 0, 0]


def test_a_gateway_without_a_models_api_leaves_models_unchecked(command: Command, api: RunningEmulator) -> None:
    api.emulator.add_fault(on="models", do="status", status=404, error_type="not_found_error", times=1000)

    ran, every = command("estimate", "job.yaml", "--models", OPUS), command("estimate", "job.yaml", "--models", "all")

    assert ran.out.splitlines()[5].split()[-1] == "?"
    assert f"warning  {OPUS}: the Models API gives no facts about it, so it was not checked\n" in ran.out
    assert every.code == 2
    assert every.err.startswith("error: --models: the models could not be looked up: ")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (
            ("claude-haiku-4-6",),
            "--models: the API knows no model 'claude-haiku-4-6'; did you mean 'claude-haiku-4-5'?",
        ),
        ((" , ",), "--models  , : write names of models with commas between them, or all"),
        (("all,claude-opus-5",), "--models all,claude-opus-5: write names of models with commas between them, or all"),
        (
            ("all", "--refresh"),
            "--models estimates all rows, also those that have an answer; leave --refresh out",
        ),
    ],
)
def test_what_cannot_be_estimated_is_refused(command: Command, options: tuple[str, ...], error: str) -> None:
    ran = command("estimate", "job.yaml", "--models", *options)

    assert (ran.code, ran.out) == (2, "")
    assert ran.err == f"error: {error}\n"


def test_a_source_without_rows_is_refused(command: Command, folder: Path) -> None:
    job(folder, rows="id,text\n")

    ran = command("estimate", "job.yaml", "--models", "all")

    assert (ran.code, ran.err) == (2, "error: --models: there is no row to send, so no model can be estimated\n")
