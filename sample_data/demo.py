"""`make demo`: summarize 500 real texts, through the real SDK over real HTTP, offline."""

import sqlite3
import subprocess
import sys
from pathlib import Path

JOB = "sample_data/jobs/summarize_documents.yaml"
DATABASE = "sample_data/jobs/emulated.db"


def main() -> int:
    """Run the sample job against the emulator, show three answers, and return the exit code of the run."""
    command = Path(sys.executable).with_name("batch-pipeline")
    code = subprocess.run([command, "run", JOB, "--emulator", "--yes"], check=False).returncode
    if code:
        return code
    print("\nthree of the answers:")
    with sqlite3.connect(DATABASE) as database:
        for key, text in database.execute(
            "SELECT doc_id, text FROM document_summaries ORDER BY length(text) DESC LIMIT 3"
        ):
            print(f"  {key}\n    {text}")
    query = "SELECT status, count(*), sum(cost_usd) FROM document_summaries GROUP BY status"
    print(f"\nask it yourself:\n  sqlite3 {DATABASE} '{query}'")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
