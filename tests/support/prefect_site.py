"""The installation of a team for tests: a Prefect server, PostgreSQL and the emulator; one for each module."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import pytest
from sqlalchemy import select, text

from pipeline.emulator import RunningEmulator, start
from pipeline.state.database import Database
from pipeline.state.tables import batches, jobs, runs
from tests.support.postgres import new_database
from tests.support.prefect_stack import Stack, stack

KEY = "sk-ant-very-secret-key"
DAY = 3600.0  # seconds that a batch takes; a test that needs its end advances the emulator's clock

JOB = """\
name: {name}
vars: {{run_date: today}}
source: {{path: {name}.csv, key: id}}
request: {{model: claude-haiku-4-5, max_tokens: 60, prompt: "Summarize: {{{{ text }}}}"}}
limits: {{max_batch_requests: 2}}
canary: false
sink: {{table: {name}_answers}}
"""


@dataclass
class Site:
    """The installation of a team: Prefect, the state database, and the emulator as the API."""

    prefect: Stack
    database: Database
    api: RunningEmulator

    def job(self, name: str, texts: tuple[str, ...] = ("one", "two", "three")) -> str:
        """Add a job with these rows to the project, and return the path of its file as a flow's parameter."""
        folder = self.prefect.project / "jobs"
        folder.mkdir(exist_ok=True)
        rows = "".join(f"r{n},{name} {row}\n" for n, row in enumerate(texts))
        (folder / f"{name}.csv").write_text(f"id,text\n{rows}")
        (folder / f"{name}.yaml").write_text(JOB.format(name=name))
        return f"jobs/{name}.yaml"

    def let_batches_end(self) -> None:
        """Advance the emulator's clock until all its batches have ended."""
        self.api.emulator.clock.advance(DAY + 120)
        self.api.emulator.wait_idle()

    def batch_states(self, name: str) -> list[str]:
        """Return the state of each batch of a job."""
        of_job = batches.join(jobs, jobs.c.id == batches.c.job_id)
        query = select(batches.c.state).select_from(of_job).where(jobs.c.name == name).order_by(batches.c.id)
        with self.database.read() as conn:
            return list(conn.scalars(query))

    def batch_ids(self, name: str) -> list[int]:
        """Return the number of each batch of a job."""
        of_job = batches.join(jobs, jobs.c.id == batches.c.job_id)
        with self.database.read() as conn:
            return list(conn.scalars(select(batches.c.id).select_from(of_job).where(jobs.c.name == name)))

    def run_states(self, name: str) -> list[tuple[str, str | None]]:
        """Return the state and reason of each run of a job."""
        of_job = runs.join(jobs, jobs.c.id == runs.c.job_id)
        query = select(runs.c.state, runs.c.reason).select_from(of_job).where(jobs.c.name == name).order_by(runs.c.id)
        with self.database.read() as conn:
            return [(state, reason) for state, reason in conn.execute(query)]

    def planned(self, name: str) -> bool:
        """Return whether each run of a job is planned to the end of its source."""
        of_job = runs.join(jobs, jobs.c.id == runs.c.job_id)
        with self.database.read() as conn:
            return None not in conn.scalars(select(runs.c.planned_at).select_from(of_job).where(jobs.c.name == name))

    def until_at_the_api(self, name: str) -> None:
        """Wait until both batches of a job are at the API, and its planning has ended.

        A driver that dies before that end leaves its run open for the next one, which a sweep is not.
        """
        self.prefect.until(
            lambda: self.batch_states(name) == ["in_progress"] * 2 and self.planned(name),
            f"two batches of {name} at the API, and the end of its planning",
        )

    def statuses(self, table: str) -> list[str]:
        """Return the statuses in a results table, by key."""
        with self.database.read() as conn:
            return list(conn.scalars(text(f"SELECT status FROM {table} ORDER BY id")))


@pytest.fixture(scope="module")
def site(postgres_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with (
        new_database(postgres_server, template="template0") as url,
        start(folder / "emulator", processing_seconds=DAY) as api,
        closing(Database(url)) as database,
        stack(
            folder,
            ANTHROPIC_BASE_URL=api.url,
            ANTHROPIC_API_KEY=KEY,
            BATCH_DATABASE_URL=url,
            BATCH_SPOOL=str(folder / "spool"),
            BATCH_POLL_SECONDS="0.2",
            BATCH_GRACE_SECONDS="1",
            BATCH_LEASE_SECONDS="5",
            BATCH_REPORTS=str(folder),
        ) as prefect,
    ):
        yield Site(prefect, database, api)
