"""Keep the C library's heap from giving memory back between steps, only to ask for the same pages in the next one.

A step allocates each of its activations anew. Beyond some size glibc maps such a block and unmaps it when it is freed,
and it cuts the free end of its heap: then every page is zeroed by the kernel once a step. Kept, they cost nothing.
"""

from __future__ import annotations

import ctypes
import logging
import sys

_log = logging.getLogger(__name__)

# malloc.h of glibc
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_NEVER_TRIM = 2**31 - 1
_LARGEST_KEPT = 1 << 28  # bytes; weights and caches beyond it are mapped, and given back as a whole
_LARGEST_KEPT_ONCE = 1 << 25  # the most that older versions take


def keep_freed_memory() -> bool:
    """Whether the C library took it; others than glibc are left as they are. To be called before threads start: each
    would have a heap of its own, in pieces of 64 MB that are unmapped when they are empty."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        _log.info("the C library has no mallopt: memory that a step frees may have to be asked for again in the next")
        return False
    mallopt(_ARENA_MAX, 1)
    kept = mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT) or mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT_ONCE)
    return bool(kept and mallopt(_TRIM_THRESHOLD, _NEVER_TRIM))
