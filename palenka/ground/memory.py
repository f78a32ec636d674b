"""Memory of a process on a CPU: what is freed is kept for the next step."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt` (malloc.h)."""
_MOST_KEPT = 2**31 - 1
"""Bytes that are free at the top before they go back to the system: the largest value that there is."""
_OWN_MAPPING = 2**25
"""Bytes from which an allocation is a mapping of its own, which always goes back: the largest value that there is."""


def keep_freed_memory() -> None:
    """Let this process keep what it frees, where the C library is glibc; elsewhere do nothing.

    A step frees and allocates the same large buffers again and again. By default glibc gives them back to the system,
    which fills each page with zeros when it is touched again: a quarter to a third of the processor time of a small
    student over a large vocabulary (benchmarks/records/student_step.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _OWN_MAPPING)
        mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT)
