"""Settings of the allocators and of the garbage collector: little memory, and little work for it. Edge: libc.

The pipeline works on small chunks of rows, so a process needs little memory at a time and can return the rest.
"""

import atexit
import contextlib
import ctypes
import functools
import gc
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # options of glibc's mallopt
ARENAS = 1  # few threads allocate at the same time, and each arena keeps free blocks of its own
TRIM_BYTES = 2_000_000  # free bytes at the end of the heap from which on they are returned to the system
BLOCK_BYTES = 1_000_000  # blocks of this size or more come from the system, and go back to it when they are freed
#: Settings of polars' own allocator: one arena for all threads, which keeps freed memory for a second at most, because
#: the system would have to clear each page of the next chunk again.
_OF_POLARS = "narenas:1,dirty_decay_ms:1000,muzzy_decay_ms:0"
LARGE_BYTES = 4_000_000  # larger than the blocks that a chunk of long rows needs

_uses_little_memory = False


def use_little_memory() -> None:
    """Set the allocators of this process to return free memory soon.

    Smaller blocks stay in the process for reuse, because the system would have to clear each of their pages again. Call
    it at the start of the process, before polars and pyarrow are imported.
    """
    global _uses_little_memory
    os.environ.setdefault("POLARS_MAX_THREADS", "1")  # a chunk is too small to be split among threads
    os.environ.setdefault("_RJEM_MALLOC_CONF", _OF_POLARS)
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # its own keeps freed pages: 20 MB in two processes
    _set(_M_ARENA_MAX, ARENAS)
    _set(_M_TRIM_THRESHOLD, TRIM_BYTES)
    _set(_M_MMAP_THRESHOLD, BLOCK_BYTES)
    _uses_little_memory = True


@functools.cache  # it is called for each chunk
def keep_large_blocks() -> None:
    """Keep freed blocks of some megabytes in the process for reuse, for sources with long rows.

    Otherwise the system provides and clears each block again. Measured with rows of 100 kB: a quarter less time, 50 MB
    more memory. Does nothing unless `use_little_memory` was called, because the default settings keep such blocks.
    """
    if _uses_little_memory:
        _set(_M_MMAP_THRESHOLD, LARGE_BYTES)
        _set(_M_TRIM_THRESHOLD, 2 * LARGE_BYTES)


def collect_seldom() -> None:
    """Keep the garbage collector from looking at what was made so far, and run it less often: rows make no cycles.

    Call it when all modules are imported. They stay, and it would look through all their objects many times.
    """
    gc.freeze()
    gc.set_threshold(50_000)


def skip_last_collection() -> None:
    """Keep the garbage collector from looking through all objects when the process ends: their memory goes with it.

    Measured after the import of the SDK: it saves half a second.
    """
    atexit.register(gc.freeze)


def _set(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # not glibc: it has no mallopt
        ctypes.CDLL(None).mallopt(option, value)
