"""What becomes of memory that a CPU process frees.

glibc gives large blocks back to Linux as soon as they are freed, and Linux hands them out again page by page, each
filled with zeros. A training step frees and asks for gigabytes of activations, always of about the same sizes: about
a sixth of its time is spent on that.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def keep_freed_memory() -> None:
    """From now on this process keeps what it frees, for itself. Without glibc, or if it refuses, nothing changes."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # never; the largest int, 2 GiB, is less than a step may free
