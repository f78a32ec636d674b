"""Memory of a process on a CPU: freed memory is kept for the next step."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt` (malloc.h)."""
_MOST_KEPT = 2**31 - 1
"""Free bytes at the top of the heap that are kept: the largest possible value."""
_OWN_MAPPING = 2**25
"""Size from which an allocation is its own mapping, which always returns to the system: the largest possible value."""


def keep_freed_memory() -> None:
    """Let this process keep freed memory if the C library is glibc; else do nothing.

    A step frees and allocates the same large buffers again and again. By default glibc returns them to the system,
    which zeroes each page when it is touched again: a quarter to a third of the CPU time of a small student over a
    large vocabulary (benchmarks/records/student_step.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _OWN_MAPPING)
        mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT)
