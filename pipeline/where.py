"""Where a driver works: the state database, the spool, and the API or the emulator in its place."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pipeline import leases, store
from pipeline.api import Api, NotFound
from pipeline.database import Database
from pipeline.driver import Settings, Stop, Tell, nothing
from pipeline.errors import ApiUnreachable, DatabaseError, InputError

EMULATED_SECONDS = 1.0  # that a batch takes in an emulator started for one command
EMULATED_GRACE = 2.0  # what it accepted shows in its listing at once, so there is no need to wait for it long


@dataclass(frozen=True)
class Where:
    """Where a driver works: state database, spool (None: beside the database), and how to reach the API."""

    database: Database
    connect: Callable[[], Api]
    settings: Settings = field(default_factory=Settings)
    spool: str | None = None
    tell: Tell = nothing
    stop: Stop = field(default_factory=Stop)
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    def spool_root(self, stored_spool: str | None) -> Path:
        """The spool: the one given, else the one the job has used, else `spool` beside the database."""
        if self.spool is not None and stored_spool is not None and Path(self.spool).absolute() != Path(stored_spool):
            raise DatabaseError(f"--spool {self.spool}: this job's spool is {stored_spool}; leave the option out")
        chosen = self.spool or stored_spool
        return Path(chosen).absolute() if chosen else self.database.file.parent / "spool"

    @contextlib.contextmanager
    def api(self) -> Iterator[tuple[Api, int]]:
        """The API and our account's number there.

        Raises InputError for an address that does not answer, for nothing was sent, and DatabaseError when the database
        belongs to the other world.
        """
        api = self.connect()
        try:
            try:
                identity = api.identity()
            except ApiUnreachable as exc:
                raise InputError(f"{exc}; nothing was sent") from exc
            except NotFound as exc:
                raise InputError(
                    f"{api.base_url} does not answer as the Messages API does ({exc}); check ANTHROPIC_BASE_URL; "
                    "nothing was sent"
                ) from exc
            with self.database.write() as conn:
                account_id = store.account(conn, identity)
            yield api, account_id
        finally:
            api.close()

    def lease(self, job_name: str) -> contextlib.AbstractContextManager[leases.Lease]:
        """The lease on a job. Raises Busy, which names the holder."""
        return leases.hold(self.database, f"job {job_name}", seconds=self.settings.lease, now=self.now)


@contextlib.contextmanager
def at(
    database: Database,
    *,
    spool: str | None = None,
    emulated: bool = False,
    poll_seconds: float | None = None,
    tell: Tell = nothing,
    stop: Stop | None = None,
) -> Iterator[Where]:
    """Work with this database and the API that the environment names, or an emulator started for it.

    The emulator's data lies beside the database, so that a killed run finds its batches again. Raises InputError when
    another process is using that data.
    """
    settings = Settings.from_environment(poll_seconds=poll_seconds, grace=EMULATED_GRACE if emulated else None)
    base_url = api_key = None
    with contextlib.ExitStack() as stack:
        if emulated:
            base_url, api_key = stack.enter_context(_emulator_beside(database)), "emulated"
            tell("emulator", url=base_url)
        yield Where(
            database=database,
            connect=lambda: Api.connect(timeout=settings.timeout, base_url=base_url, api_key=api_key),
            settings=settings,
            spool=spool,
            tell=tell,
            stop=stop or Stop(),
        )


@contextlib.contextmanager
def _emulator_beside(database: Database) -> Iterator[str]:
    from pipeline.emulator import EmulatorError, start

    data = database.file.with_name(database.file.name + ".emulator")
    try:
        running = start(data, processing_seconds=EMULATED_SECONDS)
    except EmulatorError as exc:
        raise InputError(str(exc)) from exc
    with running:
        yield running.url
