"""The settings of the allocators."""

import os
import subprocess
import sys

import pytest

SCRIPT = """\
from pipeline import memory
memory.use_little_memory()
import polars, pyarrow
print(pyarrow.default_memory_pool().backend_name, polars.thread_pool_size())
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param({}, "system 1", id="ours"),
        pytest.param(
            {"ARROW_DEFAULT_MEMORY_POOL": "mimalloc", "POLARS_MAX_THREADS": "2"}, "mimalloc 2", id="the user's"
        ),
    ],
)
def test_the_libraries_use_our_settings_unless_the_user_gives_others(given: dict[str, str], expected: str) -> None:
    names = ("ARROW_DEFAULT_MEMORY_POOL", "POLARS_MAX_THREADS", "_RJEM_MALLOC_CONF")  # this process may have set them
    environment = {name: value for name, value in os.environ.items() if name not in names}

    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment | given, capture_output=True, text=True, check=True
    )

    assert ran.stdout.split() == expected.split()
