"""Every error that oncelake raises on purpose.

```
OncelakeError
├── InputError          what a source sent cannot be taken; nothing of it was stored
│   ├── UndecodableError    broken JSON, a bad gzip stream, an unreadable Parquet file            HTTP 400
│   ├── InvalidSchemaError  a column is missing, unknown or of a type that cannot be exact      HTTP 422
│   ├── TooLargeError       over a configured limit                                              HTTP 413
│   └── UnknownFormatError  a media type, encoding or file ending that is not known              HTTP 415
├── QueryError          a parameter of a question is not valid                                   HTTP 400
├── QueryLimitError     a question that is valid went beyond a limit; ask for less
│   ├── AnswerTooLargeError  more rows than one answer may have                                 HTTP 422
│   ├── QueryTimeError       it took longer than a query may                                    HTTP 503
│   └── QueryMemoryError     it needed more memory than queries have, also when it spilled      HTTP 503
├── TransientError      try again later
│   ├── QueueFullError      ingest is saturated                                                  HTTP 429
│   ├── StoppingError       the service is shutting down, or lost its store                      HTTP 503
│   └── DiskFullError       there is no room                                                     HTTP 507
├── StoreInUseError     another process owns the data directory
├── StoreVersionError   the data directory was written by a newer oncelake
├── CorruptionError     bytes on disk are not those that were committed; names file, bytes and seqs
│   └── DamagedFileError    a Parquet file that an answer needs                                 HTTP 500
└── ConfigError         a key or value of the configuration is not valid
```
"""

from __future__ import annotations

__all__ = [
    "GIVE_UP",
    "MEND",
    "AnswerTooLargeError",
    "ConfigError",
    "CorruptionError",
    "DamagedFileError",
    "DiskFullError",
    "InputError",
    "InvalidSchemaError",
    "OncelakeError",
    "QueryError",
    "QueryLimitError",
    "QueryMemoryError",
    "QueryTimeError",
    "QueueFullError",
    "StoppingError",
    "StoreInUseError",
    "StoreVersionError",
    "TooLargeError",
    "TransientError",
    "UndecodableError",
    "UnknownFormatError",
]

MEND = "run `oncelake rebuild --mend`, or restore it from a backup"
"""What to do about a damaged or missing file whose records are normally on disk twice."""

GIVE_UP = (
    "restore it from a backup, or give up what cannot be read of it: `oncelake rebuild --mend --accept-loss rejected`"
)
"""What to do about damaged dead letters, which are on disk once."""


class OncelakeError(Exception):
    """Base of all of them. `str()` is a sentence for a person: what, where, why, and what to do."""


class InputError(OncelakeError):
    """What a source sent cannot be taken. `code` is stable; `position` says where, in words, or is None."""

    code = "invalid_input"

    def __init__(self, message: str, *, code: str | None = None, position: str | None = None) -> None:
        super().__init__(message)
        self.code = code or type(self).code
        self.position = position


class UndecodableError(InputError):
    """The bytes are not what their format says they are."""

    code = "undecodable"


class InvalidSchemaError(InputError):
    """A column is missing, unknown, or of a type that cannot be exact. One dead letter for the whole batch."""

    code = "invalid_schema"


class TooLargeError(InputError):
    """Over a configured limit; the message names the limit and its key."""

    code = "too_large"


class UnknownFormatError(InputError):
    """A media type, encoding or file ending that is not known."""

    code = "unsupported_format"


class QueryError(OncelakeError):
    """A parameter of a question is not valid. `parameter` names it."""

    def __init__(self, message: str, *, parameter: str) -> None:
        super().__init__(message)
        self.parameter = parameter


class QueryLimitError(OncelakeError):
    """A question that is valid went beyond a limit. The message names the limit and its key."""


class AnswerTooLargeError(QueryLimitError):
    """More rows than one answer may have."""


class QueryTimeError(QueryLimitError):
    """A query took longer than it may."""


class QueryMemoryError(QueryLimitError):
    """A query needed more memory than there is for it, also when it spilled."""


class TransientError(OncelakeError):
    """Nothing is wrong with the input; the same call may succeed later."""


class QueueFullError(TransientError):
    """Ingest is saturated. `retry_after_s` is a sensible wait."""

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StoppingError(TransientError):
    """The service is shutting down, or the committer stopped after a failed write."""


class DiskFullError(TransientError):
    """There is no room on the device. Nothing of the request was stored."""


class StoreInUseError(OncelakeError):
    """Another process owns the data directory."""


class StoreVersionError(OncelakeError):
    """The data directory was written by a newer oncelake."""


class CorruptionError(OncelakeError):
    """Bytes on disk are not those that were committed."""


class DamagedFileError(CorruptionError):
    """A Parquet file is not what it was. `file` and the message name it relative to the data directory."""

    def __init__(self, message: str, *, file: str) -> None:
        super().__init__(message)
        self.file = file


class ConfigError(OncelakeError):
    """A key or value of the configuration is not valid."""
