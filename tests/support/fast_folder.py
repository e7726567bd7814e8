"""Keep the folders of tests in memory where there is enough of it: most of their waiting is for a disk.

A test stands no power cut, so what it writes need not reach a disk. `tests/storage/test_durable.py` checks the order in
which files are synchronized, and nothing here changes which calls are made.
"""

import os
import shutil
from pathlib import Path

import pytest

IN_MEMORY = Path("/dev/shm")  # Linux: a file system in memory
NEEDED = (
    8_000_000_000  # free bytes; far more than tests use at a time, because a test's folder is removed when it passes
)


def pytest_configure(config: pytest.Config) -> None:
    """Let pytest make its temporary folders in memory, unless it was told where."""
    told = config.option.basetemp or os.environ.get("PYTEST_DEBUG_TEMPROOT")
    if not told and os.access(IN_MEMORY, os.W_OK) and shutil.disk_usage(IN_MEMORY).free >= NEEDED:
        os.environ["PYTEST_DEBUG_TEMPROOT"] = str(IN_MEMORY)
