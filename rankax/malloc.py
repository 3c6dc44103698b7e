"""Importing this, before anything that starts threads, has glibc keep what is freed.

A training step on CPU allocates its activations anew. Pages that come from the system
every time, to be zeroed, took a fifth to two fifths of its processor time. What is kept
is at most what was in use at once, and gaps; arrays of 2 GiB or more go back as ever.
"""

import contextlib
import ctypes

# malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8

with contextlib.suppress(AttributeError, OSError):  # another C library has no mallopt
    _mallopt = ctypes.CDLL(None).mallopt
    # A thread's own arena would take large blocks from the system and give them back.
    # The number is fixed when the first thread allocates.
    _mallopt(_ARENA_MAX, 1)
    if not _mallopt(_MMAP_THRESHOLD, 2**31 - 1):
        # glibc 2.34 and before allows 32 MiB, and the next line would fix what it is:
        # 128 KiB. So nothing is mapped, however large.
        _mallopt(_MMAP_MAX, 0)
    _mallopt(_TRIM_THRESHOLD, -1)  # never
