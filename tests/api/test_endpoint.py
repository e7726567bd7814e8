"""A job names its endpoint of the API itself: the address, headers and a timeout. None of that is a secret."""

import contextlib
import sqlite3

import pytest

from pipeline.api.reach import reach_of
from pipeline.emulator import RunningEmulator
from pipeline.errors import InputError
from pipeline.job.api_section import ApiClient
from pipeline.job.endpoint import Endpoint
from tests.api.test_connect import Machine, Relay, assert_refused, counted, end_all_batches, machine, slow  # noqa: F401
from tests.cli.test_bad_input import api, command, folder, running  # noqa: F401  # fixtures


def test_a_run_uses_the_address_and_the_headers_of_its_job(machine: Machine) -> None:  # noqa: F811
    machine.set(ANTHROPIC_API_KEY="emulated", ANTHROPIC_BASE_URL="http://127.0.0.1:9", TEAM_PASS="pass-of-the-team")
    with Relay(machine.running.url, prefix="/team") as gateway:
        machine.set(GATEWAY=f"{gateway.url}/team")
        job = machine.job("default, base_url: $GATEWAY, headers: {x-team: summaries, x-pass: $TEAM_PASS}, timeout: 30")

        checked, ran = machine("check", job), machine("run", job)

    assert (checked.code, ran.code) == (0, 0), ran.err
    assert machine.statuses() == ["succeeded"] * 3
    assert {(call.headers["x-team"], call.headers["x-pass"]) for call in gateway.calls} == {
        ("summaries", "pass-of-the-team")
    }
    with contextlib.closing(sqlite3.connect(machine.folder / "batches.db")) as database:
        assert "pass-of-the-team" not in "\n".join(database.iterdump())


def test_a_sweep_groups_jobs_by_address_and_headers(machine: Machine, slow: RunningEmulator) -> None:  # noqa: F811
    machine.set(ANTHROPIC_API_KEY="emulated")
    with Relay(slow.url) as one, Relay(slow.url) as other:
        for name, gateway, team in (("a", one, "x"), ("b", one, "x"), ("c", one, "y"), ("d", other, "x")):
            job = machine.job(f'default, base_url: "{gateway.url}", headers: {{x-team: {team}}}', name)
            assert machine("run", job, "--detach").code == 0
        end_all_batches(slow)
        before = len(one.calls), len(other.calls)

        swept = machine("collect")

    assert swept.code == 0, swept.err
    assert {name: machine.statuses(name) for name in "abcd"} == {name: ["succeeded"] * 3 for name in "abcd"}
    calls = [call for gateway, done in ((one, before[0]), (other, before[1])) for call in gateway.calls[done:]]
    results = [call.headers["x-team"] for call in calls if call.name.endswith("/results")]
    assert sorted(results) == ["x", "x", "x", "y"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        pytest.param("base_url: gateway", "api.base_url: 'gateway' is not an http(s) URL", id="no URL"),
        pytest.param("base_url: 'ftp://host'", "api.base_url: 'ftp://host' is not an http(s) URL", id="another scheme"),
        pytest.param("base_url: 'http://host:port'", "api.base_url: this is not an http(s) URL", id="no port"),
        pytest.param("base_url: 'https://'", "api.base_url: 'https://' is not an http(s) URL", id="no host"),
        pytest.param(
            "base_url: 'https://u:hunter2@host'", "api.base_url: this holds a key or a password", id="password"
        ),
        pytest.param(
            "base_url: $NO_SUCH", "api.base_url: the environment variable NO_SUCH is not set", id="no variable"
        ),
        pytest.param("base_url: $ODD", "api.base_url: the value of $ODD is not an http(s) URL", id="an odd variable"),
        pytest.param("headers: {x-api-key: hunter2}", "api.headers: x-api-key: its value may be a key", id="a key"),
        pytest.param("headers: {x-a: Bearer hunter2}", "api.headers: x-a: its value may be a key", id="a bearer"),
        pytest.param(
            "headers: {x-a: sk-ant-hunter2hunter2}", "api.headers: x-a: its value may be a key", id="the API's"
        ),
        pytest.param(
            "headers: {x-a: '1hunter2%s'}" % ("a" * 40), "api.headers: x-a: its value may be", id="random letters"
        ),
        pytest.param("headers: {'a b': x}", "api.headers: 'a b' is not the name of a header", id="no name"),
        pytest.param('headers: {x-a: "a\\nb"}', "api.headers: x-a: its value has characters that", id="two lines"),
        pytest.param("headers: {anthropic-beta: x}", "request.betas sets this header", id="one of ours"),
        pytest.param("headers: {x-a: $NO_SUCH}", "api.headers.x-a: the environment variable NO_SUCH is", id="unset"),
        pytest.param("timeout: 0", "api.timeout: Input should be greater than or equal to 1", id="no time"),
    ],
)
def test_what_cannot_be_an_endpoint_or_may_be_a_secret_is_refused(
    machine: Machine,  # noqa: F811
    fields: str,
    said: str,
) -> None:
    machine.set(ANTHROPIC_API_KEY="emulated", ODD="gateway")

    before = counted(machine)

    ran = machine("run", machine.job(f"default, {fields}"))

    assert_refused(ran, said)
    assert "hunter2" not in ran.err
    assert counted(machine) == before


def test_a_workspace_and_an_address_of_a_cloud_are_no_keys() -> None:
    workspace = "wrkspc_01JwQvzr7rXLA5AGx3HKfFUJ"
    url = f"https://claude.googleapis.com/v1/projects/my-project-4711/locations/global/workspaces/{workspace}/invoke"

    section = ApiClient.model_validate({"base_url": url, "headers": {"anthropic-workspace-id": workspace}})

    assert section.endpoint == Endpoint("default", url, (("anthropic-workspace-id", workspace),))
    assert reach_of(section.endpoint, 600.0).timeout == 600.0


def test_a_value_of_the_environment_that_cannot_be_a_header_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAM_PASS", "hunter2\nx")

    with pytest.raises(InputError) as refused:
        reach_of(Endpoint(headers=(("x-pass", "$TEAM_PASS"),)), 1.0)

    assert str(refused.value) == "api.headers.x-pass: its value has characters that a header cannot have; correct it"
