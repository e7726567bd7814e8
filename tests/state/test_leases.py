"""Leases on planning, signs of life of drivers, and which batches are free to claim."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from pipeline.cli.terminal import Teller
from pipeline.driver.driver import Driver
from pipeline.errors import Busy, LostRace
from pipeline.events.runs import PlannedElsewhere
from pipeline.reasons import Reason
from pipeline.state import leases
from pipeline.state.batches import Batch
from pipeline.state.database import Database
from pipeline.state.holders import holder
from pipeline.state.leases import DRIVER, FORGOTTEN_AFTER, Lease
from pipeline.state.moves import drop_batch
from pipeline.state.tables import accounts, batches
from pipeline.state.tables import leases as table
from pipeline.states import BatchState
from tests.conftest import World, event_line

POSTGRESQL_IS_LONG = True

HOUR = timedelta(hours=1)
RESOURCE = "planning notes"


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with closing(Database(database_url)) as database:
        yield database


def row_of(database: Database, resource: str = RESOURCE) -> Any:
    """Return the row of the lease; None if there is none."""
    with database.read() as conn:
        return conn.execute(select(table).where(table.c.resource == resource)).one_or_none()


def change(database: Database, resource: str = RESOURCE, *, left: timedelta | None = None, **values: Any) -> None:
    """Change the row of a lease. left: the time until it runs out, by the clock of leases."""
    with database.write() as conn:
        if left is not None:
            values["expires_at"] = database.now(conn, datetime.now(UTC)) + left
        conn.execute(update(table).where(table.c.resource == resource).values(**values))


def held_by(database: Database, other: dict[str, Any], *, left: timedelta) -> None:
    """Add a lease that another driver has held for a while."""
    with leases.hold(database, RESOURCE, seconds=60):
        pass
    change(database, holder=other, left=left)


# -- holders of a lease ----------------------------------------------------------------------------------------------


def test_each_holder_has_a_higher_token_than_the_one_before(database: Database) -> None:
    tokens = []

    for _ in range(3):
        with leases.hold(database, RESOURCE, seconds=60) as lease:
            tokens.append(lease.token)

    assert tokens == [1, 2, 3]
    assert (row_of(database).holder, row_of(database).expires_at) == (None, None)


def test_a_lease_of_a_living_process_is_refused_with_its_holder_and_its_end(
    database: Database,
) -> None:
    me = holder()

    with leases.hold(database, RESOURCE, seconds=60):
        until = row_of(database).expires_at
        with pytest.raises(Busy) as busy, leases.hold(database, RESOURCE, seconds=60):
            pass

    who, when = f"process {me['pid']} on {me['host']}", f"{until:%Y-%m-%d %H:%M:%S} UTC"
    what = f"{who} is doing this now; its lease lasts until {when} and is renewed while the process lives"
    assert str(busy.value) == f"{RESOURCE}: {what}: wait, or stop the process"


@pytest.mark.parametrize(
    "other", [{}, {"pid": 1}, [1], "a driver"], ids=["empty", "of an early version", "a list", "text"]
)
def test_a_holder_with_missing_parts_keeps_its_lease_like_any_other(database: Database, other: Any) -> None:
    held_by(database, other, left=HOUR)
    with (
        pytest.raises(Busy, match=rf"{RESOURCE}: process .* is doing this now"),
        leases.hold(database, RESOURCE, seconds=60),
    ):
        pass

    change(database, left=-HOUR)

    with leases.hold(database, RESOURCE, seconds=60) as lease:
        assert lease.token == 2


def test_a_lease_without_an_end_is_free(database: Database) -> None:
    held_by(database, holder(), left=HOUR)
    change(database, expires_at=None)

    with leases.hold(database, RESOURCE, seconds=60) as lease:
        assert lease.token == 2


HOLDS = """\
import sys
from pipeline.state import leases
from pipeline.state.database import Database
with leases.hold(Database(sys.argv[1]), sys.argv[2], seconds=3600):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lease_of_a_killed_process_on_this_machine_is_free_at_once(database: Database, database_url: str) -> None:
    command = [sys.executable, "-c", HOLDS, database_url, RESOURCE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(Busy, match=f"process {other.pid} on"), leases.hold(database, RESOURCE, seconds=60):
            pass
        other.kill()
    assert other.returncode == -9

    with leases.hold(database, RESOURCE, seconds=60) as lease:
        assert lease.token == 2


NOT_SEEN = [{"boot": "another"}, {"namespace": "pid:[1]"}]


@pytest.mark.parametrize("difference", NOT_SEEN, ids=["on a machine of the same name", "in another container"])
def test_a_lease_held_on_another_machine_is_free_only_after_it_has_run_out(
    database: Database, difference: dict[str, str]
) -> None:
    held_by(database, holder() | {"started": "0"} | difference, left=timedelta(seconds=5))
    with pytest.raises(Busy), leases.hold(database, RESOURCE, seconds=60):
        pass

    change(database, left=-timedelta(seconds=1))

    with leases.hold(database, RESOURCE, seconds=60) as lease:
        assert lease.token == 2


# -- writing under a lease -------------------------------------------------------------------------------------------


def test_a_holder_that_wakes_after_another_has_taken_over_changes_nothing(database: Database) -> None:
    with ExitStack() as stack:
        woken = stack.enter_context(leases.hold(database, RESOURCE, seconds=60))
        change(database, holder=holder() | {"host": "elsewhere"}, left=-HOUR)
        other = stack.enter_context(leases.hold(database, RESOURCE, seconds=60))

        with pytest.raises(LostRace, match=f"{RESOURCE}: another driver took over"):
            write_something(database, woken)
        nothing = written(database)
        write_something(database, other)

        assert (nothing, written(database)) == (0, 1)


def write_something(database: Database, lease: Lease) -> None:
    """Write in a transaction that checks the lease."""
    with database.write() as conn:
        conn.execute(insert(accounts).values(base_url="x", organization="o", workspace="w", emulated=True))
        lease.check(conn)


def written(database: Database) -> int:
    with database.read() as conn:
        return len(conn.scalars(select(accounts.c.id)).all())


def test_a_holder_that_ends_late_does_not_free_what_another_has_taken_over(database: Database) -> None:
    with ExitStack() as later:
        with leases.hold(database, RESOURCE, seconds=60):
            change(database, left=-HOUR)
            other = later.enter_context(leases.hold(database, RESOURCE, seconds=60))

        with database.write() as conn:
            other.check(conn)
        with pytest.raises(Busy), leases.hold(database, RESOURCE, seconds=60):
            pass


def test_a_lease_is_renewed_while_it_is_held(database: Database) -> None:
    with leases.hold(database, RESOURCE, seconds=0.3) as lease:
        first = row_of(database).expires_at
        until(lambda: row_of(database).expires_at > first + timedelta(seconds=0.3))

        assert not lease.lost
    assert lease.lost


def until(holds: Callable[[], bool]) -> None:
    for _ in range(20_000):
        if holds():
            return
    raise AssertionError("it does not come to hold")


def test_a_lease_that_another_driver_has_counts_as_lost_at_once() -> None:
    lease = Lease(RESOURCE, 1, 60.0)
    before = lease.lost

    lease.gone = True

    assert (before, lease.lost) == (False, True)


def test_a_lease_that_could_not_be_renewed_in_its_time_counts_as_lost() -> None:
    lease = Lease(RESOURCE, 1, 0.0)

    assert lease.lost


# -- signs of life ---------------------------------------------------------------------------------------------------


def signs(database: Database) -> list[str]:
    with database.read() as conn:
        return list(conn.scalars(select(table.c.resource).where(table.c.resource.startswith(DRIVER))))


def test_each_driver_has_a_sign_of_life_that_is_removed_at_its_end(database: Database) -> None:
    with leases.sign_of_life(database, seconds=60) as one, leases.sign_of_life(database, seconds=60) as other:
        both = signs(database)

    assert sorted(both) == sorted([one.resource, other.resource])
    assert signs(database) == []


def test_only_signs_of_life_of_certainly_dead_drivers_are_removed(database: Database) -> None:
    names = ["alive", "silent", "forgotten", "killed", "of another boot", "of a clock set back", "without an end"]
    with ExitStack() as stack:
        drivers = {name: stack.enter_context(leases.sign_of_life(database, seconds=60)).resource for name in names}
        elsewhere = holder() | {"boot": "another", "started": "0"}
        change(database, drivers["silent"], holder=elsewhere, left=-HOUR)  # it may be suspended, and wake
        change(database, drivers["forgotten"], holder=elsewhere, left=-FORGOTTEN_AFTER - HOUR)
        change(database, drivers["killed"], holder=holder() | {"started": "0"})
        change(database, drivers["of another boot"], holder=elsewhere)  # a machine of this name, or this one before
        change(database, drivers["of a clock set back"], left=-FORGOTTEN_AFTER - HOUR)  # this process, which lives
        change(database, drivers["without an end"], holder=elsewhere, expires_at=None)

        with database.write() as conn:
            gone = {name for name in names if leases.is_gone(conn, drivers[name])}
            leases.bury(conn, database.now(conn, datetime.now(UTC)))
            then_gone = {name for name in names if leases.is_gone(conn, drivers[name])}

        assert set(signs(database)) == {drivers[name] for name in names if name not in ("forgotten", "killed")}
        assert gone == {"killed"}
        assert then_gone == {"forgotten", "killed"}


def test_an_unknown_driver_is_not_presumed_gone(database: Database) -> None:
    with database.read() as conn:
        assert not leases.is_gone(conn, "")


# -- clocks ----------------------------------------------------------------------------------------------------------


def behind() -> datetime:
    return datetime.now(UTC) - HOUR


def ahead() -> datetime:
    return datetime.now(UTC) + HOUR


@pytest.mark.parametrize(("first", "second"), [(behind, ahead), (ahead, behind)], ids=["behind", "ahead"])
def test_on_postgresql_the_clocks_of_drivers_do_not_change_the_length_of_a_lease(
    postgres_url: str, first: Callable[[], datetime], second: Callable[[], datetime]
) -> None:
    with closing(Database(postgres_url)) as database:
        with leases.hold(database, RESOURCE, seconds=60, now=first):
            expires_at = row_of(database).expires_at
            with pytest.raises(Busy), leases.hold(database, RESOURCE, seconds=60, now=second):
                pass
            change(database, left=-timedelta(seconds=1))
            with leases.hold(database, RESOURCE, seconds=60, now=second) as lease:
                token = lease.token

        assert abs(expires_at - datetime.now(UTC)) < timedelta(minutes=2)
        assert token == 2


# -- batches that drivers have claimed -------------------------------------------------------------------------------


def taken(by: Driver) -> list[int]:
    """Return the planned batches that a driver gets if it claims all."""
    return [batch.id for batch in by.claims(BatchState.PLANNED)]


def test_a_batch_of_a_living_driver_is_not_claimed_by_another(planned: World) -> None:
    with ExitStack() as stack:
        one, other = planned.driver(stack), planned.driver(stack)

        assert (taken(one), taken(other)) == ([1], [])


def test_a_batch_of_a_driver_that_has_ended_is_free(planned: World) -> None:
    with ExitStack() as stack:
        with ExitStack() as first:
            gone = planned.driver(first)
            assert taken(gone) == [1]

        assert taken(planned.driver(stack)) == [1]


def test_a_batch_of_a_dead_driver_is_free_when_a_new_driver_starts(planned: World) -> None:
    with ExitStack() as stack:
        dead = planned.driver(stack)
        assert taken(dead) == [1]
        change(planned.database, dead.lease.resource, holder=holder() | {"started": "0"})

        assert taken(planned.driver(stack)) == [1]


def test_a_batch_of_a_driver_on_a_machine_with_the_same_name_is_free_only_after_its_lease_has_run_out(
    planned: World,
) -> None:
    with ExitStack() as stack:
        there = planned.driver(stack)
        assert taken(there) == [1]
        its = holder() | {"boot": "another", "pid": 2**22}  # an id that no process here has
        change(planned.database, there.lease.resource, holder=its)
        before = taken(planned.driver(stack))

        planned.clock.advance(planned.settings.lease + 1)

        assert (before, taken(planned.driver(stack))) == ([], [1])


def test_a_run_that_waits_for_batches_of_another_driver_names_it_and_the_end_of_its_lease(planned: World) -> None:
    with ExitStack() as stack:
        other = planned.driver(stack)
        assert taken(other) == [1]
        change(planned.database, other.lease.resource, holder=holder() | {"host": "db1", "boot": "another", "pid": 7})
        until = row_of(planned.database, other.lease.resource).expires_at

        finished = planned.run(planned.job())

    who = "waiting: 1 planned, held by process 7 on db1: wait, or stop the process"
    free = "if it has died, its lease runs out"
    when = f"{free} at {until:%Y-%m-%d %H:%M:%S} UTC at the latest; next look in 1 s"
    assert event_line("waiting", planned.told("waiting")[0]) == f"{who}; {when}"
    assert planned.told("waiting")[-1]["held_by"] == []  # by then the waiting driver has claimed the batch
    assert finished.rows == {"succeeded": 5}


def test_the_thing_that_a_driver_waits_for_is_printed_only_once(capfd: pytest.CaptureFixture[str]) -> None:
    with Teller(as_json=False) as teller:
        for second in range(3):
            problem = f"planning notes: process 7 is doing this now; its lease lasts until :0{second}"
            teller.tell(PlannedElsewhere(problem=problem))

    assert capfd.readouterr().err == "waiting: planning notes: process 7 is doing this now; its lease lasts until :00\n"


def test_a_batch_of_a_silent_driver_is_free_and_the_driver_cannot_move_it_when_it_wakes(planned: World) -> None:
    with ExitStack() as stack:
        silent, other = planned.driver(stack), planned.driver(stack)
        [before] = silent.claims(BatchState.PLANNED)
        planned.clock.advance(planned.settings.lease + 1)  # its sign of life has run out
        [after] = other.claims(BatchState.PLANNED)

        with pytest.raises(LostRace, match="batch 1 was taken by another driver"):
            drop(silent, before)

        assert after.claim == before.claim + 1
        assert planned.batch_states() == ["planned"]
        drop(other, after)
        assert planned.batch_states() == ["dropped"]


def drop(by: Driver, batch: Batch) -> None:
    """Move a batch that a driver believes it has claimed."""
    with by.moving(batch) as conn:
        drop_batch(conn, batch, Reason.RUN_ENDED)


@pytest.mark.parametrize("world", ["PostgreSQL"], indirect=True)
@pytest.mark.parametrize("hours", [1, -1], ids=["ahead", "behind"])
def test_on_postgresql_a_driver_with_a_wrong_clock_claims_and_keeps_batches_like_any_other(
    planned: World, hours: int
) -> None:
    with ExitStack() as stack:
        right, wrong = planned.driver(stack), planned.driver(stack, skew=hours * HOUR)
        took = taken(right), taken(wrong)
        planned.clock.advance(planned.settings.lease + 1)  # the signs of life of both run out
        again = planned.driver(stack, skew=hours * HOUR)
        took_then = taken(again), taken(right)
        planned.clock.advance(planned.settings.lease + 1)
        last = taken(planned.driver(stack))

    assert took == ([1], [])
    assert took_then == ([1], [])
    assert last == [1]
    with planned.database.read() as conn:
        assert conn.scalar(select(batches.c.claim)) == 4  # the first claim was the run's own
