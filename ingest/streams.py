"""Bytes behind a compression, with limits: what a truncated or hostile stream does is an error, never a short read."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import zstandard

from ingest.formats import Compression
from store.errors import TooLargeError, UndecodableError

__all__ = ["Decompressed", "Limits", "skip", "too_many_records"]

_INPUT_BYTES = 64 << 10
_ZSTD_INPUT_BYTES = 2 << 10
"""Per step; four bytes of zstd can make 128 KiB, so that this bounds what one step may give to 64 MiB."""

_RATIO_SLACK_BYTES = 16 << 20


@dataclass(frozen=True)
class Limits:
    """Bounds of one batch. None is no bound. `max_ratio` (decompressed to compressed) holds beyond 16 MiB."""

    max_decompressed_bytes: int | None = None
    max_ratio: int | None = None
    chunk_bytes: int = 4 << 20
    chunk_rows: int = 8_192
    max_rejects: int | None = None
    max_records: int | None = None


class Decompressed:
    """The decompressed bytes of `source`: members and frames one after the other, within the limits."""

    def __init__(self, source: BinaryIO, compression: Compression, limits: Limits) -> None:
        self._source = source
        self._compression = compression
        self._limits = limits
        self._taken = 0
        self._given = 0
        self._ready = b""
        self._input = b""
        self._gzip: zlib._Decompress | None = None
        self._zstd: zstandard.ZstdDecompressionObj | None = None
        self._step: Callable[[int], bytes | None] = {
            Compression.NONE: self._plain,
            Compression.GZIP: self._gunzip,
            Compression.ZSTD: self._unzstd,
        }[compression]
        self._begun = False

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes (all of them where it is negative); none only at the end."""
        wanted = size if size >= 0 else None
        parts = [self._ready] if self._ready else []
        have = len(self._ready)
        while wanted is None or have < wanted:
            piece = self._step(_INPUT_BYTES if wanted is None else max(wanted - have, 1))
            if piece is None:
                break
            self._count(len(piece))
            parts.append(piece)
            have += len(piece)
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        if wanted is None or have <= wanted:
            self._ready = b""
            return data
        self._ready = data[wanted:]
        return data[:wanted]

    def _count(self, size: int) -> None:
        self._given += size
        most = self._limits.max_decompressed_bytes
        if most is not None and self._given > most:
            raise TooLargeError(
                f"The batch has more than {most} bytes when decompressed (ingest.max_decompressed_bytes): "
                "send smaller batches, or drop a file.",
                code="too_large_decompressed",
            )
        ratio = self._limits.max_ratio
        if ratio is not None and self._given > _RATIO_SLACK_BYTES and self._given > ratio * self._taken:
            raise TooLargeError(
                f"The batch grows more than {ratio} times when decompressed (ingest.max_ratio): compress it less.",
                code="too_large_ratio",
            )

    def _plain(self, size: int) -> bytes | None:
        data = self._source.read(size)
        self._taken += len(data)
        return data or None

    def _fill(self, size: int) -> bool:
        if not self._input:
            self._input = self._source.read(size)
            self._taken += len(self._input)
        return bool(self._input)

    def _gunzip(self, size: int) -> bytes | None:
        filled = self._fill(_INPUT_BYTES)
        if self._gzip is None:
            if self._begun:
                # Zeros may pad the end, as gzip itself takes them.
                self._input = self._input.lstrip(b"\0")
                filled = bool(self._input) or self._fill(_INPUT_BYTES)
            if not filled and self._begun:
                return None
            self._gzip, self._begun = zlib.decompressobj(wbits=31), True
        if not filled:
            raise self._truncated()
        try:
            data = self._gzip.decompress(self._input, min(size, 16 << 20))
        except zlib.error as error:
            raise self._corrupt(error) from error
        self._input = self._gzip.unconsumed_tail
        if self._gzip.eof:
            self._input, self._gzip = self._gzip.unused_data, None
        return data

    def _unzstd(self, size: int) -> bytes | None:
        filled = self._fill(_ZSTD_INPUT_BYTES)
        if self._zstd is None:
            if not filled and self._begun:
                return None
            self._zstd, self._begun = zstandard.ZstdDecompressor(max_window_size=128 << 20).decompressobj(), True
        if not filled:
            raise self._truncated()
        try:
            data: bytes = self._zstd.decompress(self._input)
        except (zstandard.ZstdError, MemoryError) as error:
            raise self._corrupt(error) from error
        self._input = b""
        if self._zstd.eof:
            self._input, self._zstd = self._zstd.unused_data, None
        return data

    def _truncated(self) -> UndecodableError:
        name = self._compression.value
        return UndecodableError(
            f"The {name} stream ends too early, after {self._given} decompressed bytes: it was cut.",
            position=f"byte {self._taken} of the {name} stream",
        )

    def _corrupt(self, error: BaseException) -> UndecodableError:
        name = self._compression.value
        return UndecodableError(f"The {name} stream is broken: {error}.", position=f"byte {self._taken} of it")


def too_many_records(most: int) -> TooLargeError:
    """The error of a batch with more records than one may have."""
    return TooLargeError(
        f"The batch has more than {most} records (ingest.max_batch_records): send smaller batches, or drop a file.",
        code="too_many_records",
    )


def skip(stream: Decompressed, size: int, chunk_bytes: int) -> None:
    """Go on `size` bytes."""
    while size:
        data = stream.read(min(size, chunk_bytes))
        if not data:
            raise UndecodableError(f"The file ends {size} bytes before the place where it was to be gone on with.")
        size -= len(data)
