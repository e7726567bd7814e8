"""Death at every commit and at every HTTP call of a run: nothing is lost, and nothing is accepted twice."""

import json
import subprocess
import sys
from pathlib import Path

from pipeline.emulator import start
from tests.crash_points import ROWS


def test_a_driver_may_die_at_any_commit_and_any_call(tmp_path: Path) -> None:
    with start(tmp_path / "emulator") as api:
        api.emulator.add_fault(on="item", do="error", error_type="api_error", match="again", times=1, per="params")
        (tmp_path / "runs").mkdir()

        halves = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.crash_points", api.url, str(tmp_path / "runs"), *places],
                cwd=Path(__file__).parent.parent,
                stdout=subprocess.PIPE,
                text=True,
            )
            for places in (["before commit", "before call"], ["after commit", "after call"])
        ]
        seen = [json.loads(half.communicate()[0]) for half in halves]

        audit = api.emulator.audit()
        assert [problem for half in seen for problem in half["problems"]] == []
        assert sum(half["points"] for half in seen) > 50
        assert audit["accepted_twice"] == []
        runs = len(list((tmp_path / "runs").iterdir()))
        assert audit["requests_accepted"] == runs * ROWS  # less the invalid one, and one of them twice
