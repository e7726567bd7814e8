"""The prompt cache: the first request with a prefix writes it, later ones read it until it expires."""

from typing import Any

import pytest

from pipeline.emulator import Emulator
from tests.emulator.builders import client_of, requests, result_lines, result_of

LONG = "z" * 4 * 5000  # 5,000 tokens; the model's minimum is 4,096


def usage_of(emulator: Emulator, text: str = "Go.", ttl: str | None = "5m", system: str = LONG, **fields: Any) -> Any:
    control = {"cache_control": {"type": "ephemeral", "ttl": ttl}} if ttl else {}
    blocks = [{"type": "text", "text": system, **control}]
    turns = [{"role": "user", "content": text}]
    usage = result_of(emulator, system=blocks, messages=turns, **fields)["message"]["usage"]
    return usage["cache_creation_input_tokens"], usage["cache_read_input_tokens"], usage["input_tokens"]


def test_the_first_request_writes_the_cache_and_the_next_reads_it(emulator: Emulator) -> None:
    assert usage_of(emulator, "One.") == (5000, 0, 11)
    assert usage_of(emulator, "Two.") == (0, 5000, 11)


def test_without_cache_control_nothing_is_cached(emulator: Emulator) -> None:
    assert usage_of(emulator, ttl=None) == (0, 0, 5011)
    assert usage_of(emulator, ttl=None) == (0, 0, 5011)


def test_a_prefix_below_the_models_minimum_is_not_cached(emulator: Emulator) -> None:
    assert usage_of(emulator, system="z" * 4000) == (0, 0, 1011)
    assert usage_of(emulator, system="z" * 8000, model="claude-sonnet-4-6") == (2000, 0, 11)


@pytest.mark.parametrize(
    ("ttl", "lives", "dies"), [("5m", 290, 301), ("1h", 3590, 3601)], ids=["five minutes", "an hour"]
)
def test_a_prefix_expires_a_ttl_after_its_last_use(emulator: Emulator, ttl: str, lives: int, dies: int) -> None:
    usage_of(emulator, ttl=ttl)

    emulator.clock.advance(lives)
    assert usage_of(emulator, ttl=ttl)[:2] == (0, 5000)
    emulator.clock.advance(lives)
    assert usage_of(emulator, ttl=ttl)[:2] == (0, 5000)
    emulator.clock.advance(dies)
    assert usage_of(emulator, ttl=ttl)[:2] == (5000, 0)


def test_written_tokens_are_counted_under_their_ttl(emulator: Emulator) -> None:
    blocks = [{"type": "text", "text": LONG, "cache_control": {"type": "ephemeral", "ttl": "1h"}}]

    usage = result_of(emulator, system=blocks)["message"]["usage"]

    assert usage["cache_creation"] == {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 5000}


def test_another_model_has_a_cache_of_its_own(emulator: Emulator) -> None:
    usage_of(emulator)

    assert usage_of(emulator, model="claude-sonnet-4-5")[:2] == (5000, 0)


def test_a_longer_prefix_reads_the_part_that_is_cached_and_writes_the_rest(emulator: Emulator) -> None:
    control = {"cache_control": {"type": "ephemeral"}}
    turn = [{"type": "text", "text": "y" * 4000, **control}, {"type": "text", "text": "Go."}]
    usage_of(emulator)

    system = [{"type": "text", "text": LONG, **control}]
    usage = result_of(emulator, system=system, messages=[{"role": "user", "content": turn}])["message"]["usage"]

    assert (usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]) == (5000, 1000)


def test_more_than_four_breakpoints_are_refused(emulator: Emulator) -> None:
    block = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}

    error = result_of(emulator, system=[block] * 5)["error"]["error"]

    assert error["message"] == "A maximum of 4 blocks with cache_control may be provided. Found 5."


def batch_usage(emulator: Emulator, number: int) -> tuple[int, int]:
    """Send a batch whose requests share 5,000 tokens; return how many requests wrote them and how many read them."""
    system = [{"type": "text", "text": LONG, "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
    client = client_of(emulator)
    batch = client.messages.batches.create(requests=requests(number, system=system))
    emulator.wait_idle()
    usages = [line["result"]["message"]["usage"] for line in result_lines(client, batch.id)]
    return (
        sum(usage["cache_creation"]["ephemeral_1h_input_tokens"] == 5000 for usage in usages),
        sum(usage["cache_read_input_tokens"] == 5000 for usage in usages),
    )


def test_the_first_requests_of_a_batch_start_together_so_all_of_them_write(emulator: Emulator) -> None:
    assert batch_usage(emulator, 50) == (20, 30)


def test_a_batch_of_one_request_primes_the_cache_for_the_next_batch(emulator: Emulator) -> None:
    assert batch_usage(emulator, 1) == (1, 0)
    assert batch_usage(emulator, 50) == (0, 50)


def test_after_the_prefix_has_expired_the_next_batch_writes_it_again(emulator: Emulator) -> None:
    batch_usage(emulator, 50)

    emulator.clock.advance(3599)
    alive = batch_usage(emulator, 50)
    emulator.clock.advance(3601)
    gone = batch_usage(emulator, 50)

    assert (alive, gone) == ((0, 50), (20, 30))


@pytest.mark.parametrize(("wave", "counts"), [(0, (1, 9)), (1, (1, 9)), (4, (4, 6)), (100, (10, 0))], ids=str)
def test_the_number_of_requests_that_start_together_can_be_set(
    emulator: Emulator, wave: int, counts: tuple[int, int]
) -> None:
    emulator.settings.cache_first_wave = wave

    assert batch_usage(emulator, 10) == counts


def test_a_minimum_prefix_can_be_set_for_all_models(emulator: Emulator) -> None:
    emulator._core.cache._minimum = 10

    assert usage_of(emulator, system="z" * 400)[:2] == (100, 0)
