"""Keeping memory that was freed, in processes that ask for as much again at once."""

import ctypes
from functools import cache

import pyarrow as pa

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


@cache
def keep_freed_memory() -> None:
    """Large arrays reuse the memory of earlier ones; else glibc maps and zeroes it every time.

    Worth about 15 % of a training step on a CPU and a tenth of writing shards; elsewhere than
    under glibc it does nothing. Arrow's own allocator, which gives memory back soon, is replaced.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            mallopt(parameter, 2**31 - 1)
        pa.set_memory_pool(pa.system_memory_pool())
