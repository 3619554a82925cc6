"""What a batch may come as: formats and compressions, by media type, encoding or file name (contract section 3)."""

from __future__ import annotations

from enum import Enum
from functools import lru_cache

from store.errors import UnknownFormatError

__all__ = ["Compression", "Format", "by_encoding", "by_file_name", "by_media_type"]


class Format(Enum):
    """How records are written down. The two Arrow formats are told apart by their content, whatever the name says."""

    JSON = "json"
    NDJSON = "ndjson"
    CSV = "csv"
    PARQUET = "parquet"
    ARROW_STREAM = "arrow_stream"
    ARROW_FILE = "arrow_file"


class Compression(Enum):
    """What is around the format."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"


_MEDIA_TYPES = {
    "application/json": Format.JSON,
    "application/x-ndjson": Format.NDJSON,
    "application/ndjson": Format.NDJSON,
    "application/jsonl": Format.NDJSON,
    "text/csv": Format.CSV,
    "application/vnd.apache.parquet": Format.PARQUET,
    "application/vnd.apache.arrow.stream": Format.ARROW_STREAM,
    "application/vnd.apache.arrow.file": Format.ARROW_FILE,
}
_ENDINGS = {
    ".json": Format.JSON,
    ".ndjson": Format.NDJSON,
    ".jsonl": Format.NDJSON,
    ".csv": Format.CSV,
    ".parquet": Format.PARQUET,
    ".arrows": Format.ARROW_STREAM,
    ".arrow": Format.ARROW_FILE,
}
_ENCODINGS = {"": Compression.NONE, "identity": Compression.NONE, "gzip": Compression.GZIP, "zstd": Compression.ZSTD}
_COMPRESSED = {".gz": Compression.GZIP, ".zst": Compression.ZSTD}
_CHARSETS = {"utf-8", "utf8", "us-ascii"}


@lru_cache(64)
def by_media_type(content_type: str) -> Format:
    """The format that a `Content-Type` names. Parameters are fine, another charset than UTF-8 is not."""
    name, *parameters = content_type.split(";")
    found = _MEDIA_TYPES.get(name.strip().lower())
    if found is None:
        raise UnknownFormatError(f"The media type {name.strip()!r} is not known. Known are: {', '.join(_MEDIA_TYPES)}.")
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip().lower() == "charset" and value.strip().strip('"').lower() not in _CHARSETS:
            raise UnknownFormatError(f"The charset {value.strip()!r} is not known. Send UTF-8.")
    return found


def by_encoding(content_encoding: str | None) -> Compression:
    """The compression that a `Content-Encoding` names; None, an empty one and `identity` are none."""
    found = _ENCODINGS.get((content_encoding or "").strip().lower())
    if found is None:
        raise UnknownFormatError(f"The content encoding {content_encoding!r} is not known. Known are: gzip, zstd.")
    return found


def by_file_name(name: str) -> tuple[Format, Compression]:
    """The format and compression that the endings of a file name say, in any case (`.CSV.GZ`)."""
    stem = name.lower()
    compression = Compression.NONE
    for ending, candidate in _COMPRESSED.items():
        if stem.endswith(ending):
            stem, compression = stem.removesuffix(ending), candidate
            break
    for ending, found in _ENDINGS.items():
        if stem.endswith(ending):
            return found, compression
    raise UnknownFormatError(
        f"The ending of {name!r} is not known. Known are: {', '.join(_ENDINGS)}, each also with .gz or .zst behind."
    )
