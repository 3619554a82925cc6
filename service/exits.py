"""Exit codes, and the one place where errors become them: 0 done, 1 it found or met a problem, 2 wrong usage."""

from __future__ import annotations

import sys
from collections.abc import Callable

from store.errors import ConfigError, OncelakeError

__all__ = ["DONE", "PROBLEM", "USAGE", "run"]

DONE, PROBLEM, USAGE = 0, 1, 2


def run(command: Callable[[], int]) -> int:
    """Run a command; what goes wrong is one clear line on standard error."""
    try:
        return command()
    except ConfigError as error:
        return _failed(error, USAGE)
    except (OncelakeError, OSError) as error:
        return _failed(error, PROBLEM)
    except KeyboardInterrupt:
        return _failed("interrupted", PROBLEM)


def _failed(error: object, code: int) -> int:
    print(f"oncelake: {error}", file=sys.stderr)
    return code
