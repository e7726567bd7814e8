"""The description of models, and the settings that change their capabilities."""

from pathlib import Path
from typing import Any

import anthropic
import pytest
from pydantic import ValidationError

from pipeline.emulator import Emulator, Settings
from pipeline.emulator.model.validate import Context, problem
from tests.emulator.builders import asking, client_of, image, params, pdf, result_of, text_document

TOOL = {"name": "look", "input_schema": {"type": "object"}}
NO_FORCED_TOOL = [
    "claude-fable-5-2",
    "claude-mythos-5-2",
    "claude-fable-5-1",
    "claude-mythos-5-1",
    "claude-opus-5-5",
    "claude-sonnet-5-5",
    "claude-mythos-preview",
]


@pytest.mark.parametrize("model", NO_FORCED_TOOL)
@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "look"}], ids=["any", "tool"])
def test_some_models_cannot_be_forced_to_use_a_tool(model: str, choice: dict[str, str]) -> None:
    found = problem(params(model=model, tools=[TOOL], tool_choice=choice), Context("2026-10-21"), lambda: 10)

    assert found is not None
    assert found.message == f'tool_choice: "{choice["type"]}" is not supported for this model'


@pytest.mark.parametrize("model", ["claude-fable-5", "claude-opus-5", "claude-haiku-5-5", "claude-haiku-4-5"])
def test_other_models_can_be_forced_to_use_a_tool(model: str) -> None:
    fields = params(model=model, tools=[TOOL], tool_choice={"type": "any"})

    assert problem(fields, Context("2026-10-21"), lambda: 10) is None


def test_a_retired_model_is_still_described_but_answers_nothing(
    emulator: Emulator, client: anthropic.Anthropic
) -> None:
    retired = client.models.retrieve("claude-opus-4-1-20250805")

    error = result_of(emulator, model=retired.id)["error"]["error"]

    assert retired.lifecycle == "retired"
    assert (error["type"], error["message"]) == ("not_found_error", "model: claude-opus-4-1-20250805")


@pytest.fixture
def blind(tmp_path: Path) -> Any:
    with Emulator(tmp_path / "blind", settings=Settings(models_without_vision=["claude-haiku-4-5"])) as emulator:
        yield emulator


def test_a_model_without_vision_is_described_as_such(blind: Emulator) -> None:
    client = client_of(blind)

    blind_one, other = (client.models.retrieve(name).capabilities for name in ("claude-haiku-4-5", "claude-opus-5"))

    assert blind_one is not None
    assert other is not None
    assert (blind_one.image_input.supported, blind_one.pdf_input.supported) == (False, False)
    assert (other.image_input.supported, other.pdf_input.supported) == (True, True)


@pytest.mark.parametrize(
    ("block", "word"),
    [
        pytest.param(image(), "image", id="image"),
        pytest.param(pdf(), "PDF", id="PDF"),
        pytest.param({"type": "document", "source": {"type": "url", "url": "https://a.example"}}, "PDF", id="by URL"),
    ],
)
def test_a_model_without_vision_refuses_images_and_pdfs(blind: Emulator, block: dict[str, Any], word: str) -> None:
    error = result_of(blind, messages=asking(block))["error"]["error"]

    assert error["type"] == "invalid_request_error"
    assert error["message"] == (f"messages.0.content.0: 'claude-haiku-4-5-20251001' does not support {word} input.")


def test_a_model_without_vision_reads_plain_text(blind: Emulator) -> None:
    file = client_of(blind).files.upload(file=("a.txt", b"Hello.", "text/plain"))
    stored = {"type": "document", "source": {"type": "file", "file_id": file.id}}

    result = result_of(blind, messages=asking(text_document("Hello."), stored))

    assert result["type"] == "succeeded"


def test_other_models_still_accept_images(blind: Emulator) -> None:
    assert result_of(blind, model="claude-opus-5", messages=asking(image(), pdf()))["type"] == "succeeded"


def test_a_model_without_batches_is_described_as_such_and_fails_only_in_batches(tmp_path: Path) -> None:
    with Emulator(tmp_path, settings=Settings(models_without_batch=["claude-haiku-4-5-20251001"])) as emulator:
        client = client_of(emulator)
        capabilities = client.models.retrieve("claude-haiku-4-5").capabilities
        error = result_of(emulator)["error"]["error"]
        live = client.messages.create(**params())

    assert capabilities is not None
    assert not capabilities.batch.supported
    assert error["type"] == "invalid_request_error"
    assert error["message"] == "model: 'claude-haiku-4-5-20251001' is not supported in the Message Batches API"
    assert live.stop_reason == "end_turn"


def test_an_unknown_model_in_the_settings_is_refused() -> None:
    with pytest.raises(ValidationError, match="gpt is not a model of the emulator's catalogue"):
        Settings(models_without_vision=["gpt"])
