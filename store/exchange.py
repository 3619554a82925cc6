"""Two names exchanged in one step, which Python has no call for: Linux `renameat2`, macOS `renamex_np`."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

__all__ = ["exchange_names"]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
"""Of Linux's `renameat2`."""

_RENAME_SWAP = 2
"""Of macOS's `renamex_np`."""


def exchange_names(first: Path, second: Path) -> None:
    """What was at `first` is at `second` and the other way round; nobody sees a moment in between.

    `OSError` with `ENOSYS` or `EINVAL` where the system or the file system cannot.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        names = (_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), ctypes.c_uint(_RENAME_EXCHANGE))
        failed = libc.renameat2(*names)
    elif hasattr(libc, "renamex_np"):
        failed = libc.renamex_np(os.fsencode(first), os.fsencode(second), ctypes.c_uint(_RENAME_SWAP))
    else:
        raise OSError(errno.ENOSYS, "this system cannot exchange two names", str(first))
    if failed:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(first), None, str(second))
