"""What becomes of memory that a CPU process frees.

glibc gives large blocks back to Linux as soon as they are freed, and Linux hands them out again page by page, each
filled with zeros. A training step frees and asks for gigabytes of activations, always of about the same sizes: about
a sixth of its time is spent on that.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of malloc.h
MIB = 2**20


def keep_freed_memory() -> None:
    """From now on this process keeps what it frees, for itself. Without glibc, or if it refuses, nothing changes."""
    _set_options({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1})


def return_freed_memory() -> None:
    """Gives the system what is free, and goes on as glibc does by itself once it has freed a block of 32 MiB."""
    _set_options({M_MMAP_MAX: 65_536, M_MMAP_THRESHOLD: 32 * MIB, M_TRIM_THRESHOLD: 64 * MIB})
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _set_options(options: dict[int, int]) -> None:
    if (libc := _glibc()) is not None:
        for option, value in options.items():
            libc.mallopt(option, value)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "gnu_get_libc_version") else None
