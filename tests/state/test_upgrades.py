"""An upgrade and drivers of the older version never work at the same time, whichever starts, dies or wakes."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import insert, select, update

from pipeline.driver.driver import Driver
from pipeline.emulator import start
from pipeline.errors import DatabaseError, LostRace, PipelineError, Stopped
from pipeline.state import leases
from pipeline.state.batches import Batch
from pipeline.state.claims import check_claim
from pipeline.state.database import Database
from pipeline.state.holders import holder, in_words
from pipeline.state.jobs import mark_swept
from pipeline.state.migrations import HEAD
from pipeline.state.tables import batches, requests
from pipeline.state.tables import leases as table
from pipeline.states import BatchState
from tests.conftest import World
from tests.state.test_database import make_first_version, plain, reflected, rows_of, shape, version
from tests.support.postgres import connected
from tests.support.processes import begin, environment, put_job

POSTGRESQL_IS_LONG = True

MINUTE = timedelta(minutes=1)
NEWER = "9999"


def scripts() -> Config:
    config = Config()
    config.set_main_option("script_location", "pipeline.state:migrations")
    config.set_main_option("path_separator", "os")
    return config


def before(revision: str) -> str:
    """Return the version before the current one."""
    found = ScriptDirectory.from_config(scripts()).get_revision(revision)
    assert found is not None
    assert isinstance(found.down_revision, str)
    return found.down_revision


OLDER = sorted({"0001", before(HEAD)})


@pytest.fixture(params=OLDER)
def older(request: pytest.FixtureRequest, database_url: str) -> str:
    """The URL of a database that an older version created and filled, and no driver uses."""
    make_version(database_url, request.param)
    return database_url


@pytest.fixture
def previous(database_url: str) -> str:
    """The URL of a database that the previous version created and filled."""
    make_version(database_url, before(HEAD))
    return database_url


def make_version(url: str, revision: str) -> None:
    make_first_version(url)
    with plain(url) as conn:
        config = scripts()
        config.attributes["connection"] = conn
        command.upgrade(config, revision)


def add_lease(url: str, *, resource: str = "driver a", by: Any, left: timedelta | None = MINUTE) -> datetime | None:
    """Add a lease of a driver of the older version and return when it ends. left: the time until then."""
    end = None if left is None else datetime.now(UTC) + left
    with plain(url) as conn:
        values = {"resource": resource, "token": 3, "holder": by, "expires_at": end and end.replace(tzinfo=None)}
        conn.execute(insert(reflected(conn, "leases")).values(values))
    return end


def everything(url: str) -> tuple[Any, ...]:
    return rows_of(url), shape(url), version(url)


# -- an upgrade while a driver of the older version works ------------------------------------------------------------


@pytest.mark.parametrize("resource", ["driver 0123456789abcdef", "planning notes", "job notes"])
def test_a_database_in_use_by_a_driver_is_not_upgraded_and_not_changed(older: str, resource: str) -> None:
    end = add_lease(older, resource=resource, by=holder())
    as_it_was = everything(older)

    with pytest.raises(DatabaseError) as refused:
        Database(older)

    assert refused.value.exit_code == 2
    said = str(refused.value)
    assert f"is of version {as_it_was[-1]}, which this batch-pipeline upgrades to {HEAD}, but drivers of" in said
    assert f"at work on it: {in_words(holder())} (its lease lasts until {end:%Y-%m-%d %H:%M:%S} UTC); nothing" in said
    assert "wait until they have ended, or stop them, and run the same command again" in said
    assert everything(older) == as_it_was


@pytest.mark.parametrize(
    "other", [{"boot": "another", "started": "0"}, {"namespace": "pid:[1]", "started": "0"}, {"started": None}]
)
def test_a_driver_that_cannot_be_seen_counts_as_working_until_its_lease_has_run_out(
    previous: str, other: dict[str, Any]
) -> None:
    add_lease(previous, by=holder() | other)
    with pytest.raises(DatabaseError, match="drivers of the older version are at work on it"):
        Database(previous)

    with plain(previous) as conn:
        past = datetime.now(UTC).replace(tzinfo=None) - MINUTE
        conn.execute(update(reflected(conn, "leases")).values(expires_at=past))

    Database(previous).close()
    assert version(previous) == HEAD


@pytest.mark.parametrize(
    ("by", "left"),
    [
        pytest.param(holder(), -MINUTE, id="it has run out"),
        pytest.param(holder() | {"started": "0"}, MINUTE, id="its driver is seen dead"),
        pytest.param(None, MINUTE, id="no driver holds it"),
        pytest.param(holder(), None, id="it has no end"),
        pytest.param([1], -MINUTE, id="it is damaged and has run out"),
    ],
)
def test_a_released_lease_does_not_delay_an_upgrade(previous: str, by: Any, left: timedelta | None) -> None:
    add_lease(previous, by=by, left=left)

    Database(previous).close()

    assert version(previous) == HEAD


WORKS = """\
import json, sys
from pipeline.state.holders import holder
print(json.dumps(holder()), flush=True)
sys.stdin.read()
"""


def test_after_the_working_driver_was_killed_the_upgrade_succeeds_at_once(older: str) -> None:
    with process(WORKS) as (other, said):
        add_lease(older, by=json.loads(said()))
        with pytest.raises(DatabaseError, match=f"at work on it: process {other.pid} on "):
            Database(older)
        other.kill()

    Database(older).close()
    assert version(older) == HEAD


@contextmanager
def process(program: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], Callable[[], str]]]:
    """Start a Python process; return it with a function that reads a line of its output."""
    ignoring = ("-W", "ignore::ResourceWarning")
    with subprocess.Popen(
        [sys.executable, *ignoring, "-c", program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as started:
        assert started.stdout is not None
        yield started, started.stdout.readline
        started.kill()


def test_several_working_drivers_are_named_once_each_and_many_are_counted(previous: str) -> None:
    names = [f"process {pid} on db1" for pid in (101, 102, 103, 104, 105)]
    ends = {}
    for i, name in enumerate(names):
        by = {"pid": int(name.split()[1]), "host": "db1"}
        add_lease(previous, resource=f"driver {i}", by=by)
        ends[name] = add_lease(previous, resource=f"planning {i}", by=by, left=(i + 2) * MINUTE)

    with pytest.raises(DatabaseError) as refused:
        Database(previous)

    named = ", ".join(f"{name} (its lease lasts until {ends[name]:%Y-%m-%d %H:%M:%S} UTC)" for name in names[:3])
    assert f"at work on it: {named} and 2 more; nothing was changed" in str(refused.value)


def test_each_command_refuses_the_upgrade_with_one_sentence(tmp_path: Path) -> None:
    file, url = put_job(tmp_path), f"sqlite:///{tmp_path}/batches.db"
    make_version(url, before(HEAD))
    add_lease(url, by=holder())

    with start(tmp_path / "emulator") as api:
        ran = [begin(environment(api.url), *words) for words in (("run", str(file)), ("status", str(file)))]
        said = [each.communicate(timeout=60)[1] for each in ran]

    assert [each.returncode for each in ran] == [2, 2]
    for stderr in said:
        assert stderr.count("\n") == 1, stderr
        assert stderr.startswith("error: sqlite:///")
        assert f"/batches.db is of version {before(HEAD)}, which" in stderr
        assert in_words(holder()) in stderr


# -- a driver that starts, dies or wakes during the upgrade ----------------------------------------------------------


def test_on_postgresql_an_upgrade_waits_for_a_starting_driver_and_is_then_refused(
    postgres_url: str,
) -> None:
    make_version(postgres_url, before(HEAD))
    ends: list[str] = []

    def upgrade() -> None:
        try:
            Database(postgres_url).close()
        except DatabaseError as exc:
            ends.append(str(exc))

    with plain(postgres_url) as conn:  # what a driver of this version does when it starts
        conn.exec_driver_sql("SELECT version_num FROM alembic_version FOR KEY SHARE")
        thread = threading.Thread(target=upgrade)
        thread.start()
        until_one_waits(postgres_url)
        later = {"resource": "driver b", "token": 1, "holder": holder(), "expires_at": datetime(2100, 1, 1)}  # noqa: DTZ001
        conn.execute(insert(reflected(conn, "leases")).values(later))
    thread.join()

    assert version(postgres_url) == before(HEAD)
    assert len(ends) == 1
    assert in_words(holder()) in ends[0]


def test_on_postgresql_a_driver_that_starts_during_an_upgrade_waits_for_it_and_stops(postgres_url: str) -> None:
    with closing(Database(postgres_url)) as database:
        ends: list[PipelineError] = []

        def work() -> None:
            try:
                with leases.sign_of_life(database, seconds=60):
                    pass
            except PipelineError as exc:
                ends.append(exc)

        with plain(postgres_url) as conn:
            conn.exec_driver_sql("SELECT version_num FROM alembic_version FOR UPDATE")
            conn.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{NEWER}'")
            thread = threading.Thread(target=work)
            thread.start()
            until_one_waits(postgres_url)
        thread.join()

        with database.read() as conn:
            assert conn.scalars(select(table.c.resource)).all() == []
        assert [type(end) for end in ends] == [Stopped]


def until_one_waits(url: str) -> None:
    """Wait until a connection to this database waits for the lock of another one."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with connected(url) as looking:
        for _ in range(100_000):
            if looking.execute(query).fetchone() != (0,):
                return
    raise AssertionError("no connection waits")


UPGRADES = """\
import sys
from alembic import command
from pipeline.state.database import Database
whole = command.upgrade
def upgrade(*arguments):
    whole(*arguments)
    print("in the middle", flush=True)
    sys.stdin.read()
command.upgrade = upgrade
Database(sys.argv[1])
"""


def test_an_upgrade_does_not_touch_another_table_with_the_name_of_a_new_one(database_url: str) -> None:
    make_version(database_url, before("0010"))
    with plain(database_url) as conn:
        conn.exec_driver_sql("CREATE TABLE turns (id INTEGER, answer TEXT)")
        conn.exec_driver_sql("INSERT INTO turns VALUES (1, 'mine')")
    untouched = everything(database_url)

    with pytest.raises(DatabaseError, match="makes a table 'turns', but there is another table of that name"):
        Database(database_url)

    assert everything(database_url) == untouched
    with plain(database_url) as conn:
        assert conn.exec_driver_sql("SELECT answer FROM turns").scalars().all() == ["mine"]


def test_a_killed_upgrade_changes_nothing_and_the_next_one_succeeds(older: str) -> None:
    as_it_was = everything(older)
    with process(UPGRADES, older) as (upgrading, said):
        assert said() == "in the middle\n"
        upgrading.kill()

    after = everything(older)
    Database(older).close()

    assert after == as_it_was
    assert version(older) == HEAD


def test_a_driver_that_was_suspended_for_the_upgrade_can_move_nothing_when_it_wakes(database_url: str) -> None:
    make_version(database_url, before(HEAD))
    for resource in ("driver a", "planning j"):
        add_lease(database_url, resource=resource, by=holder() | {"boot": "another"}, left=-MINUTE)
    with plain(database_url) as conn:
        of_old = reflected(conn, "batches")
        conn.execute(update(of_old).where(of_old.c.id == 1).values(claimed_by="driver a", claim=5))

    with closing(Database(database_url)) as upgraded, upgraded.write() as conn:
        planning = leases.Lease("planning j", 3, 60)
        claimed = conn.execute(select(batches).where(batches.c.id == 1)).one()
        free = conn.execute(select(batches.c.claim).where(batches.c.id == 2)).scalar_one()
        signs = conn.execute(select(table.c.token).where(table.c.resource == "driver a")).scalar_one()
        gone = leases.is_gone(conn, "driver a")
        with pytest.raises(LostRace, match="planning j: another driver took over"):
            planning.check(conn)
        fields = {name: claimed._mapping[name] for name in Batch.__dataclass_fields__} | {"claim": 5}
        with pytest.raises(LostRace, match="batch 1 was taken by another driver"):
            check_claim(conn, Batch(**fields))

    assert (claimed.claim, free) == (6, 0)
    assert signs == 4  # a new token, so that the next renewal tells the driver that it was presumed dead
    assert not gone  # because it may be in the middle of a create call


# -- a working driver whose database is upgraded by a newer version --------------------------------------------------


def upgrade_underneath(world: World, to: str = NEWER) -> None:
    """Upgrade the database as a process of a newer version does."""
    with plain(world.database.url.render_as_string(hide_password=False)) as conn:
        conn.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{to}'")


def state_of(world: World) -> list[Any]:
    with world.database.read() as conn:
        rows = [each for of in (batches, requests) for each in conn.execute(select(of).order_by(of.c.id))]
        held = conn.execute(select(table.c.resource, table.c.token).order_by(table.c.resource)).all()
    return [*rows, *held]


UPGRADED = (
    rf"the database was upgraded by a newer version of batch-pipeline \(from {HEAD} to {NEWER}\) while this one ran"
)


def takes_a_batch(driver: Driver) -> None:
    next(driver.claims(BatchState.PLANNED))


def begins_to_plan(driver: Driver) -> None:
    with driver.planning():
        raise AssertionError("it plans")


def plans_a_part(driver: Driver) -> None:
    with driver.planning_for("planning summaries", 1), driver.planning_transaction():
        raise AssertionError("it plans")


def becomes_a_driver(driver: Driver) -> None:
    with leases.sign_of_life(driver.database, seconds=60):
        raise AssertionError("it is one")


@pytest.mark.parametrize("does", [takes_a_batch, begins_to_plan, plans_a_part, becomes_a_driver])
def test_a_driver_stops_without_a_move_if_its_database_is_upgraded(
    planned: World, does: Callable[[Driver], None]
) -> None:
    with ExitStack() as stack:
        driver = planned.driver(stack)
        upgrade_underneath(planned)
        as_it_was = state_of(planned)

        with pytest.raises(Stopped, match=UPGRADED) as stopped:
            does(driver)

        assert state_of(planned) == as_it_was
        assert stopped.value.exit_code == 3
        assert "run the job again with the new version" in str(stopped.value)


def test_planning_stops_at_its_next_transaction_after_an_upgrade(planned: World) -> None:
    with ExitStack() as stack:
        driver = planned.driver(stack)
        stack.enter_context(driver.planning())
        with driver.planning_transaction() as conn:
            mark_swept(conn, driver.job_id, driver.now())
        upgrade_underneath(planned)

        with pytest.raises(Stopped, match=UPGRADED), driver.planning_transaction():
            raise AssertionError("it plans")


@pytest.mark.parametrize("moment", ["quote", "planned", "submitting", "submitted", "waiting", "ended", "collected"])
def test_a_run_stopped_by_an_upgrade_continues_with_the_new_version_and_sends_nothing_twice(
    world: World, moment: str
) -> None:
    job = world.job(limits={"max_batch_requests": 2})

    def upgrade(event: str, facts: dict[str, Any]) -> None:
        if event == moment:
            world.on_event = None
            upgrade_underneath(world)

    world.on_event = upgrade
    with pytest.raises(Stopped, match=UPGRADED):
        world.run(job)
    upgrade_underneath(world, to=HEAD)  # from here on the new version works, which knows this version of the database
    finished = world.run(job)

    assert finished.exit_code == 0
    assert set(world.statuses().values()) == {"succeeded"}
    assert (world.accepted(), world.sent_twice()) == (5, [])
