"""A driver's settings come from environment variables, and a variable that cannot be used is named."""

import os

import pytest

from pipeline.driver.settings import Settings
from pipeline.errors import InputError


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("BATCH_")]:
        monkeypatch.delenv(name)


def test_without_variables_the_settings_are_the_defaults() -> None:
    assert Settings.from_environment().model_dump() == Settings().model_dump()
    assert Settings() == Settings(
        timeout=600.0, grace=300.0, lease=120.0, poll=None, max_in_flight=200_000, monthly_budget=None
    )


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        pytest.param("BATCH_TIMEOUT_SECONDS", "7.5", "timeout", 7.5, id="timeout"),
        pytest.param("BATCH_GRACE_SECONDS", "0", "grace", 0.0, id="grace"),
        pytest.param("BATCH_LEASE_SECONDS", "1", "lease", 1.0, id="lease"),
        pytest.param("BATCH_POLL_SECONDS", "0", "poll", 0.0, id="poll"),
        pytest.param("BATCH_MAX_IN_FLIGHT", "1", "max_in_flight", 1, id="max in flight"),
        pytest.param("BATCH_MONTHLY_BUDGET_USD", "12.50", "monthly_budget", 12.5, id="monthly budget"),
        pytest.param("BATCH_LEASE_SECONDS", "", "lease", 120.0, id="an empty variable counts as absent"),
        pytest.param("lease", "5", "lease", 120.0, id="a variable of another program"),
        pytest.param("batch_lease_seconds", "5", "lease", 120.0, id="a variable in small letters"),
    ],
)
def test_each_setting_is_read_from_its_own_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, field: str, value: float
) -> None:
    monkeypatch.setenv(variable, text)

    assert Settings.from_environment() == Settings().model_copy(update={field: value})


@pytest.mark.parametrize(
    ("variable", "text", "values"),
    [
        pytest.param("BATCH_TIMEOUT_SECONDS", "soon", "seconds, 1 or more", id="a word"),
        pytest.param("BATCH_TIMEOUT_SECONDS", "0.5", "seconds, 1 or more", id="too short a timeout"),
        pytest.param("BATCH_GRACE_SECONDS", "-1", "seconds, 0 or more", id="negative"),
        pytest.param("BATCH_LEASE_SECONDS", "0", "seconds, 1 or more", id="no lease"),
        pytest.param("BATCH_POLL_SECONDS", "nan", "seconds, 0 or more", id="no number"),
        pytest.param("BATCH_POLL_SECONDS", "1e999", "seconds, 0 or more", id="infinite"),
        pytest.param("BATCH_MAX_IN_FLIGHT", "0", "requests, 1 or more", id="no requests"),
        pytest.param("BATCH_MAX_IN_FLIGHT", "1.5", "requests, 1 or more", id="half a request"),
        pytest.param("BATCH_MONTHLY_BUDGET_USD", "0", "US dollars, more than 0", id="no money"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named_with_the_values_it_takes(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, values: str
) -> None:
    monkeypatch.setenv(variable, text)

    with pytest.raises(InputError) as refused:
        Settings.from_environment()

    assert str(refused.value) == f"{variable}={text!r}: this must be a number of {values}"


def test_polling_given_by_the_caller_wins_over_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCH_POLL_SECONDS", "30")

    assert Settings.from_environment(poll_seconds=0.5).poll == 0.5


def test_the_variable_wins_over_a_grace_time_given_by_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.from_environment(grace=2.0).grace == 2.0

    monkeypatch.setenv("BATCH_GRACE_SECONDS", "30")

    assert Settings.from_environment(grace=2.0).grace == 30.0
